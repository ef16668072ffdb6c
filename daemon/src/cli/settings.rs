//! The options of the command that set what files and the environment can set too: one for each row of the table.

use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches};

use crate::config::keys::{self, KEYS, Key};
use crate::config::value::Kind;

/// Settings that were given as options.
#[derive(Clone, Debug, Default)]
pub struct Settings(pub Vec<(&'static Key, String)>);

impl clap::Args for Settings {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(KEYS.iter().map(|key| option(key)))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |key: &&&Key| matches.value_source(key.name) == Some(ValueSource::CommandLine);
        let text = |key: &Key| {
            matches
                .get_one::<String>(key.name)
                .cloned()
                .unwrap_or_default()
        };
        let given = KEYS.iter().filter(given);
        Ok(Self(given.map(|key| (*key, text(key))).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn option(key: &'static Key) -> Arg {
    let default = if key.default.is_empty() {
        key.otherwise
    } else {
        key.default
    };
    let check = |text: &str| key.kind.parse(text).map(|_| text.to_owned());
    let option = Arg::new(key.name)
        .long(key.option())
        .help(format!("{} Default: {default}.", key.help))
        .value_name(key.shown)
        .value_parser(ValueParser::new(check))
        .help_heading("Settings, also in files and in the environment (dragon config)");
    let option = match key.kind {
        Kind::Switch => option
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Word(words) => option.value_name(words.join("|")),
        _ => option,
    };
    // What people know from elsewhere.
    match key.name {
        name if name == keys::TRANSPORT.name => option.short('t'),
        name if name == keys::PORTS.name => option.short('p').alias("port"),
        name if name == keys::INTERFACE.name => option.alias("network-prefix"),
        _ => option,
    }
}
