//! Settings: read from files, the environment and options, each overriding the one before.
//!
//! ```text
//! default  <  /etc/dragon/dragond.toml  <  $XDG_CONFIG_HOME/dragon/dragond.toml  <  DRAGON_<KEY>  <  --<key>
//! ```
//!
//! The command that starts a job reads them once and sends them to the daemons of all nodes ([`Config::pairs`]), which read
//! nothing themselves: two nodes of a job never go by different values. What exists is in one table, [`keys`].

pub mod keys;
pub mod print;
pub mod value;

use std::collections::HashMap;
use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use dragon_protocol::launch::Network;
use toml::de::{DeTable, DeValue};

use keys::{KEYS, Key, Reach, find, nearest};
use value::Value;

/// The file of the site.
pub const SITE_FILE: &str = "/etc/dragon/dragond.toml";
/// The user's file, below `$XDG_CONFIG_HOME` or else `~/.config`.
const USER_FILE: &str = "dragon/dragond.toml";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// The environment.
    Environment(String),
    /// An option of the command.
    Option(String),
    /// The command that started the job.
    Launcher,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(variable) => write!(f, "{variable} in the environment"),
            Self::Option(option) => write!(f, "--{option}"),
            Self::Launcher => f.write_str("the launcher"),
        }
    }
}

/// What is in force: a value for each setting that has one, and where it came from.
#[derive(Clone, Debug, Default)]
pub struct Config {
    values: HashMap<&'static str, (Value, Source)>,
}

/// A file of settings.
#[derive(Clone, Debug)]
pub struct Text {
    /// Its name, for messages.
    pub path: PathBuf,
    /// What stands in it.
    pub text: String,
}

impl Config {
    /// Reads files, environment and the given options.
    ///
    /// # Errors
    /// When a file cannot be read, or a setting is unknown or out of its limits; the message says where it stands.
    pub fn load(options: &[(&'static Key, String)]) -> Result<Self> {
        let files = [
            read(Path::new(SITE_FILE)),
            user_file().map_or(Ok(None), |path| read(&path)),
        ];
        let files = files.into_iter().collect::<Result<Vec<_>>>()?;
        let variable = |name: &str| match env::var(name) {
            Ok(value) => Ok(Some(value)),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(anyhow!("{name} is no UTF-8 text")),
        };
        Self::from_layers(files.into_iter().flatten(), variable, options)
    }

    /// Puts the layers one over the other: the files in their order, the environment, the options.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_layers(
        files: impl IntoIterator<Item = Text>,
        variable: impl Fn(&str) -> Result<Option<String>>,
        options: &[(&'static Key, String)],
    ) -> Result<Self> {
        let mut config = Self::defaults();
        for file in files {
            config.add_file(&file)?;
        }
        for key in KEYS {
            let name = key.variable();
            // An empty variable is as good as none.
            let Some(text) = variable(&name)?.filter(|text| !text.is_empty()) else {
                continue;
            };
            let value = key
                .kind
                .parse(&text)
                .map_err(|why| anyhow!("{name}: {why}"))?;
            config.set(key, value, Source::Environment(name));
        }
        for (key, text) in options {
            let name = key.option();
            let value = key
                .kind
                .parse(text)
                .map_err(|why| anyhow!("--{name}: {why}"))?;
            config.set(key, value, Source::Option(name));
        }
        Ok(config)
    }

    /// What the launcher sent.
    ///
    /// # Errors
    /// When a setting is unknown or out of its limits.
    pub fn from_pairs(pairs: &[(String, String)]) -> Result<Self> {
        let mut config = Self::defaults();
        for (name, text) in pairs {
            let key = find(name).with_context(|| {
                format!("the launcher set '{name}', which this release does not know")
            })?;
            let value = key
                .kind
                .parse(text)
                .map_err(|why| anyhow!("{name}: {why}"))?;
            config.set(key, value, Source::Launcher);
        }
        Ok(config)
    }

    /// What the daemons of all nodes are to know, as names and texts.
    #[must_use]
    pub fn pairs(&self) -> Vec<(String, String)> {
        let concerned = KEYS.iter().filter(|key| key.reach != Reach::Launcher);
        let set = concerned.filter_map(|key| Some((key, self.values.get(key.name)?)));
        let set = set.filter(|(_, (_, source))| *source != Source::Default);
        set.map(|(key, (value, _))| (key.name.to_owned(), value.to_string()))
            .collect()
    }

    /// The value of a setting, and where it came from.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&(Value, Source)> {
        self.values.get(key.name)
    }

    /// A setting that is text; empty when there is none.
    #[must_use]
    pub fn text(&self, key: &Key) -> &str {
        match self.value(key) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// A setting that is a number, or a size.
    #[must_use]
    pub fn number(&self, key: &Key) -> Option<u64> {
        match self.value(key)? {
            Value::Whole(number) | Value::Size(number) => Some(*number),
            _ => None,
        }
    }

    /// A setting that is on or off.
    #[must_use]
    pub fn is_on(&self, key: &Key) -> bool {
        matches!(self.value(key), Some(Value::Switch(true)))
    }

    /// A setting that is a span of time.
    #[must_use]
    pub fn time(&self, key: &Key) -> Option<Duration> {
        match self.value(key)? {
            Value::Time(span) => Some(*span),
            _ => None,
        }
    }

    /// The ports of the bring-up.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        match self.value(&keys::PORTS) {
            Some(Value::Ports(first, last)) => (*first, *last),
            _ => (
                dragon_protocol::key::PORT_FIRST,
                dragon_protocol::key::PORT_LAST,
            ),
        }
    }

    /// The settings of the network.
    #[must_use]
    pub fn network(&self) -> Network {
        Network {
            transport: self.text(&keys::TRANSPORT).to_owned(),
            interface: self.text(&keys::INTERFACE).to_owned(),
            encrypt: self.is_on(&keys::ENCRYPT),
            reconnect: self
                .number(&keys::RECONNECT)
                .and_then(|seconds| u32::try_from(seconds).ok()),
            connections: self
                .number(&keys::CONNECTIONS)
                .and_then(|number| u32::try_from(number).ok()),
        }
    }

    /// Variables that programs find in their environment, unless it has them already.
    pub fn for_programs(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let concerned = KEYS.iter().filter(|key| key.reach == Reach::Programs);
        concerned.filter_map(|key| Some((key.variable(), self.value(key)?.to_string())))
    }

    fn defaults() -> Self {
        let default =
            |key: &&'static Key| Some((key.name, (key.default_value()?, Source::Default)));
        Self {
            values: KEYS.iter().filter_map(default).collect(),
        }
    }

    fn value(&self, key: &Key) -> Option<&Value> {
        self.get(key).map(|(value, _)| value)
    }

    fn set(&mut self, key: &'static Key, value: Value, source: Source) {
        self.values.insert(key.name, (value, source));
    }

    fn add_file(&mut self, file: &Text) -> Result<()> {
        let line = |offset: usize| {
            1 + file.text[..offset.min(file.text.len())]
                .matches('\n')
                .count()
        };
        let path = file.path.display();
        let table = DeTable::parse(&file.text).map_err(|error| {
            let line = error.span().map_or(1, |span| line(span.start));
            anyhow!("{path}:{line}: {}", error.message())
        })?;
        for (name, found) in table.get_ref() {
            let line = line(name.span().start);
            let name = name.get_ref().as_ref();
            let Some(key) = find(name) else {
                let like = nearest(name, KEYS.iter().map(|key| key.name));
                let like = like.map(|like| format!("; did you mean '{like}'?"));
                let like = like.unwrap_or_default();
                bail!(
                    "{path}:{line}: there is no setting '{name}'{like} dragon config --sample lists all",
                    like = if like.is_empty() { ";" } else { &like }
                );
            };
            let text = plain(found.get_ref()).map_err(|is| {
                anyhow!(
                    "{path}:{line}: {name} is {is}; {} is wanted",
                    key.kind.limits()
                )
            })?;
            let value = key.kind.parse(&text);
            let value = value.map_err(|why| anyhow!("{path}:{line}: {name}: {why}"))?;
            self.set(key, value, Source::File(file.path.clone(), line));
        }
        Ok(())
    }
}

/// The text of a value in a file, as it would be written in the environment. An array of texts is a list with commas.
fn plain(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().replace('_', "")),
        DeValue::Integer(_) => Err("a number that is not decimal"),
        DeValue::Boolean(on) => Ok(on.to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Array(all) => {
            let all = all.iter().map(|item| plain(item.get_ref()));
            Ok(all.collect::<Result<Vec<_>, _>>()?.join(","))
        }
        DeValue::Table(_) => Err("a table, and settings stand outside of tables"),
        DeValue::Datetime(_) => Err("a date"),
    }
}

/// Where the user's file is, or would be.
#[must_use]
pub fn user_file() -> Option<PathBuf> {
    let folder = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let folder = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")));
    Some(folder?.join(USER_FILE))
}

fn read(path: &Path) -> Result<Option<Text>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Text {
            path: path.to_owned(),
            text,
        })),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot read the settings in {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests;
