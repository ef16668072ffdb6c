//! What is in force, and the commented sample file, as people and programs read them.

use std::fmt::Write;

use serde_json::json;

use super::keys::{KEYS, Key, Reach};
use super::{Config, SITE_FILE, Source};

/// The settings in columns: name, value, where it came from.
#[must_use]
pub fn table(config: &Config) -> String {
    let rows: Vec<_> = KEYS.iter().map(|key| row(config, key)).collect();
    let width = |of: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| of(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (names, values) = (width(|row| row.name), width(|row| &row.value));
    let mut out = String::new();
    for row in rows {
        let _ = writeln!(
            out,
            "{:names$}  {:values$}  {}",
            row.name, row.value, row.source
        );
    }
    out
}

struct Row {
    name: &'static str,
    value: String,
    source: String,
}

fn row(config: &Config, key: &Key) -> Row {
    let (value, source) = match config.get(key) {
        Some((value, source)) => (value.to_string(), source.to_string()),
        None => (format!("({})", key.otherwise), Source::Default.to_string()),
    };
    Row {
        name: key.name,
        value,
        source,
    }
}

/// The same as one JSON object, with a member for each setting.
#[must_use]
pub fn json(config: &Config) -> String {
    let member = |key: &&'static Key| {
        let (value, source) = match config.get(key) {
            Some((value, source)) => (Some(value.to_string()), source.clone()),
            None => (None, Source::Default),
        };
        let mut object = json!({
            "value": value,
            "source": match &source {
                Source::Default => "default",
                Source::File(..) => "file",
                Source::Environment(_) => "environment",
                Source::Option(_) => "option",
                Source::Launcher => "launcher",
            },
            "default": key.default_value().map(|value| value.to_string()),
            "variable": key.variable(),
            "option": format!("--{}", key.option()),
            "limits": key.kind.limits(),
        });
        if let Source::File(path, line) = source {
            object["file"] = json!(path.display().to_string());
            object["line"] = json!(line);
        }
        (key.name.to_owned(), object)
    };
    let object: serde_json::Map<_, _> = KEYS.iter().map(member).collect();
    let mut text = serde_json::to_string_pretty(&object).unwrap_or_default();
    text.push('\n');
    text
}

/// A file in which every setting is explained, and none is set.
#[must_use]
pub fn sample() -> String {
    let mut out = format!(
        "# Settings of dragon. The site's file is {SITE_FILE}; a user's is dragon/dragond.toml below\n\
         # $XDG_CONFIG_HOME, which is ~/.config where it is not set. What the user's file says overrides the site's, the\n\
         # environment overrides both, and options of the command override all. `dragon config` prints what is in force.\n"
    );
    for key in KEYS {
        let _ = writeln!(out, "\n# {}", wrapped(key.help));
        let _ = writeln!(out, "# {}.", wrapped(&capital(&key.kind.limits())));
        let without = if key.default.is_empty() {
            key.otherwise
        } else {
            key.default
        };
        let _ = writeln!(
            out,
            "# Default: {without}. In the environment: {}. Option: --{}.",
            key.variable(),
            key.option()
        );
        let value = key.example();
        let bare = value.parse::<u64>().is_ok() || matches!(value.as_str(), "true" | "false");
        let quote = if bare { "" } else { "\"" };
        let _ = writeln!(out, "#{} = {quote}{value}{quote}", key.name);
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

/// Breaks a comment into lines.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 110;
    let (mut out, mut column) = (String::new(), 0);
    for word in text.split(' ') {
        let room = word.chars().count() + 1;
        if column > 0 && column + room > WIDTH {
            out.push_str("\n#");
            column = 0;
        }
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
        column += room;
    }
    out
}

/// The table of settings for the documentation.
#[must_use]
pub fn markdown() -> String {
    let mut out =
        String::from("| setting | what | values | default | reaches |\n|---|---|---|---|---|\n");
    for key in KEYS {
        let default = if key.default.is_empty() {
            key.otherwise
        } else {
            key.default
        };
        let reach = match key.reach {
            Reach::Launcher => "the command",
            Reach::Nodes => "all nodes",
            Reach::Programs => "programs",
        };
        let help = key.help.replace('|', "\\|");
        let _ = writeln!(
            out,
            "| `{}` | {help} | {} | {default} | {reach} |",
            key.name,
            key.kind.limits()
        );
    }
    out
}
