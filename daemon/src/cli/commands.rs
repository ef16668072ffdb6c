//! `dragon COMMAND`: what is not the run of a program.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

use super::settings::Settings;
use super::tools::Tool;
use crate::config::{Config, print};

/// The commands. A program of such a name is run by `dragon -- NAME` or `dragon ./NAME`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print the settings in force, and where each value came from.
    ///
    /// Each layer overrides the one before: defaults, /etc/dragon/dragond.toml, dragon/dragond.toml below $XDG_CONFIG_HOME
    /// (else ~/.config), DRAGON_SETTING in the environment, options. The options of this command show what they would do.
    #[command(after_help = CONFIG_EXAMPLES)]
    Config(ConfigArguments),
    /// Print completions for a shell.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// bash, elvish, fish, powershell or zsh.
        shell: clap_complete::Shell,
    },
    /// Print a manual page, or write the pages of all commands into a folder.
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// Which one is printed.
        #[arg(value_enum, default_value_t = Page::Dragon, conflicts_with = "folder")]
        page: Page,
        /// Folder for the pages.
        #[arg(long, value_name = "FOLDER")]
        folder: Option<PathBuf>,
    },
    /// Commands for a runtime that is running.
    #[command(flatten)]
    Tool(Tool),
}

/// What there are pages about.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Page {
    /// dragon(1): this command
    Dragon,
    /// dragon-slurm(7): the option --dragon of srun, sbatch and salloc
    Slurm,
}

/// Written by hand: the option is Slurm's to parse.
const SLURM_PAGE: &str = include_str!("../../../docs/man/dragon-slurm.7");

const CONFIG_EXAMPLES: &str = "\
Examples:
  dragon config                        the settings in force, and where each came from
  dragon config --label node --json    what they would be with an option; for programs
  dragon config --sample > ~/.config/dragon/dragond.toml

Exit codes: 0; 2 when a file, a variable or an option makes no sense: the sentence says where it stands.";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  dragon completions bash > ~/.local/share/bash-completion/completions/dragon
  dragon completions zsh > ~/.zfunc/_dragon
  dragon completions fish > ~/.config/fish/completions/dragon.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  dragon man | man -l -
  dragon man slurm | man -l -
  dragon man --folder ~/.local/share/man/man1";

/// What `dragon config` takes.
#[derive(Debug, clap::Args)]
pub struct ConfigArguments {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    /// Print a file in which every setting is explained and none is set.
    #[arg(long, conflicts_with = "json")]
    pub sample: bool,

    /// Settings.
    #[command(flatten)]
    pub settings: Settings,
}

/// The command line when it begins with a command.
#[derive(Debug, clap::Parser)]
#[command(name = "dragon", version, disable_help_subcommand = true)]
pub struct CommandLine {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Whether a word is the name of a command.
#[must_use]
pub fn is_command(word: &str) -> bool {
    CommandLine::command().find_subcommand(word).is_some()
}

/// Runs a command; returns the exit code.
///
/// # Errors
/// What went wrong.
pub fn run(command: &Command) -> Result<u8> {
    match command {
        // It has exit codes of its own.
        Command::Tool(_) => {}
        Command::Config(arguments) => config(arguments)?,
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut whole(), "dragon", &mut text);
            say(&text)?;
        }
        Command::Man {
            folder: None,
            page: Page::Slurm,
        } => say(SLURM_PAGE.as_bytes())?,
        Command::Man {
            folder: None,
            page: Page::Dragon,
        } => {
            let mut text = Vec::new();
            clap_mangen::Man::new(whole()).render(&mut text)?;
            say(&text)?;
        }
        Command::Man {
            folder: Some(folder),
            ..
        } => clap_mangen::generate_to(whole(), folder)
            .with_context(|| format!("cannot write manual pages to {}", folder.display()))?,
    }
    Ok(0)
}

fn config(arguments: &ConfigArguments) -> Result<()> {
    let text = if arguments.sample {
        print::sample()
    } else {
        let config = Config::load(&arguments.settings.0)?;
        if arguments.json {
            print::json(&config)
        } else {
            print::table(&config)
        }
    };
    say(text.as_bytes())
}

/// Everything that can be typed behind `dragon`, for completions and manual pages.
fn whole() -> clap::Command {
    let commands = CommandLine::command();
    super::Arguments::command()
        .after_help(super::EXAMPLES)
        .subcommands(commands.get_subcommands().cloned())
}

/// Names of the commands and what they do, for the help.
#[must_use]
pub fn list() -> String {
    let commands = CommandLine::command();
    let line = |command: &clap::Command| {
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        format!("  {:12} {about}\n", command.get_name())
    };
    commands.get_subcommands().map(line).collect()
}

/// Prints; that nobody reads on is no error.
fn say(text: &[u8]) -> Result<()> {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot print")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_command_teaches_by_examples() {
        for command in CommandLine::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let example = format!("Examples:\n  dragon {}", command.get_name());
            assert!(help.contains(&example), "{}: {help}", command.get_name());
        }
    }

    #[test]
    fn completions_know_every_command_and_option() {
        for shell in Shell::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut whole(), "dragon", &mut text);
            let text = String::from_utf8(text).unwrap();
            let commands = whole();
            for command in commands.get_subcommands().chain([&commands]) {
                let name = command.get_name();
                assert!(text.contains(name), "{shell}: {name}");
                let shown = command
                    .get_arguments()
                    .filter(|option| !option.is_hide_set());
                for option in shown.filter_map(clap::Arg::get_long) {
                    assert!(text.contains(option), "{shell}: {name} --{option}");
                }
            }
        }
    }

    #[test]
    fn the_manual_page_has_examples_and_exit_codes() {
        let mut page = Vec::new();
        clap_mangen::Man::new(whole()).render(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for words in ["dragon attach", "Exit codes: the program", "124 when"] {
            assert!(page.contains(words), "{words}");
        }
    }

    #[test]
    fn the_page_about_slurm_is_rendered_without_a_warning() {
        let groff = std::process::Command::new("groff")
            .args(["-ww", "-man", "-Tascii", "-P-cbou"])
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../docs/man/dragon-slurm.7"
            ))
            .output();
        let Ok(groff) = groff else {
            println!(
                "SKIPPED the_page_about_slurm_is_rendered_without_a_warning: groff is not installed"
            );
            return;
        };
        let said = String::from_utf8_lossy(&groff.stderr);
        assert!(groff.status.success() && said.is_empty(), "{said}");
        let page = String::from_utf8_lossy(&groff.stdout);
        for mode in ["head", "spmd", "off"] {
            assert!(page.contains(mode), "{mode}");
        }
    }
}
