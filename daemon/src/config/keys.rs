//! The table of settings: from it come the options of the command, the names in files and in the environment, the
//! commented sample, and what `dragon config` prints.

use std::ffi::OsStr;
use std::path::Path;

use dragon_protocol::launch::Network;

use super::value::{Kind, Value};
use crate::{metrics, network};

/// Whom a setting concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The command that starts the daemons.
    Launcher,
    /// The daemons of all nodes, which get the same value.
    Nodes,
    /// Programs: they find it in their environment.
    Programs,
}

/// A setting.
#[derive(Debug)]
pub struct Key {
    /// Its name in files. In the environment it is called `DRAGON_` and the same in capitals; the option has hyphens.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// What it is when nobody says anything; empty: there is no value, and `otherwise` says what that means.
    pub default: &'static str,
    /// What happens without a value.
    pub otherwise: &'static str,
    /// The word for the value in the help.
    pub shown: &'static str,
    /// One or two sentences.
    pub help: &'static str,
    /// Whom it concerns.
    pub reach: Reach,
}

impl Key {
    /// The name of the environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("DRAGON_{}", self.name.to_ascii_uppercase())
    }

    /// The name of the option, without its two hyphens.
    #[must_use]
    pub fn option(&self) -> String {
        self.name.replace('_', "-")
    }

    /// A value that it can have: the default where there is one.
    #[must_use]
    pub fn example(&self) -> String {
        match (self.default, self.kind) {
            ("", Kind::Size { .. }) => "8G".to_owned(),
            ("", Kind::Time) => "1h30m".to_owned(),
            ("", Kind::Whole { least, most, .. }) => most.min(least.max(1) * 60).to_string(),
            ("", Kind::Switch) => "true".to_owned(),
            ("", Kind::Word(words)) => words.first().copied().unwrap_or_default().to_owned(),
            ("", _) => self.sample_text().to_owned(),
            (default, _) => default.to_owned(),
        }
    }

    fn sample_text(&self) -> &'static str {
        match self.name {
            "transport" => "tcp",
            "interface" => "ib0,ib1",
            "metrics" => "9100",
            "python" => "/usr/bin/python3",
            "placement" => "roundrobin",
            _ => "text",
        }
    }

    /// Its value when nobody says anything.
    #[must_use]
    pub fn default_value(&self) -> Option<Value> {
        let default = (!self.default.is_empty()).then(|| self.kind.parse(self.default));
        default.and_then(Result::ok)
    }
}

/// The least default pool.
pub const LEAST_POOL: u64 = 4 << 20;

/// How many ports a node tries in the bring-up is no less than this, so a range that all nodes of a machine share needs them.
macro_rules! keys {
    ($($(#[$doc:meta])* $constant:ident = $key:expr;)*) => {
        $($(#[$doc])* pub static $constant: Key = $key;)*
        /// All settings, in the order in which they are shown.
        pub static KEYS: &[&Key] = &[$(&$constant),*];
    };
}

keys! {
    /// Limit of the default pool.
    POOL = Key {
        name: "pool",
        kind: Kind::Size { least: LEAST_POOL },
        default: "",
        otherwise: "half of the memory granted on the node",
        shown: "SIZE",
        help: "Limit of the default pool on each node, for example 8G.",
        reach: Reach::Nodes,
    };
    /// The network between the nodes.
    TRANSPORT = Key {
        name: "transport",
        kind: Kind::Text(transport),
        default: "",
        otherwise: "the best there is",
        shown: "NAME",
        help: "Network between the nodes: tcp.",
        reach: Reach::Nodes,
    };
    /// Interfaces to use.
    INTERFACE = Key {
        name: "interface",
        kind: Kind::Text(interface),
        default: "",
        otherwise: "the fastest that are up",
        shown: "INTERFACES",
        help: "Network interfaces to use: names, regular expressions or networks, for example ib0,ib1 or ib[0-3] or 10.1.0.0/16.",
        reach: Reach::Nodes,
    };
    /// Whether the nodes' traffic is encrypted.
    ENCRYPT = Key {
        name: "encrypt",
        kind: Kind::Switch,
        default: "false",
        otherwise: "",
        shown: "BOOL",
        help: "Encrypt what passes between the nodes.",
        reach: Reach::Nodes,
    };
    /// For how long a broken connection is tried again.
    RECONNECT = Key {
        name: "reconnect",
        kind: Kind::Whole { least: 0, most: Network::LONGEST_RECONNECT as u64, unit: "seconds" },
        default: "5",
        otherwise: "",
        shown: "SECONDS",
        help: "Seconds for which a connection between nodes that broke is tried to be made again before what waits for it fails; 0: it is not.",
        reach: Reach::Nodes,
    };
    /// How many connections two nodes may have.
    CONNECTIONS = Key {
        name: "connections",
        kind: Kind::Whole { least: 1, most: Network::MOST_CONNECTIONS as u64, unit: "connections" },
        default: "",
        otherwise: "one for each fast network that both nodes are on",
        shown: "NUMBER",
        help: "Connections that two nodes may have for large payloads.",
        reach: Reach::Nodes,
    };
    /// Ports of the bring-up.
    PORTS = Key {
        name: "ports",
        kind: Kind::Ports,
        default: "20000-32000",
        otherwise: "",
        shown: "FIRST-LAST",
        help: "Ports on which the nodes find each other; each node takes one. Data goes by any free port.",
        reach: Reach::Nodes,
    };
    /// How long the bring-up may take.
    BRING_UP_LIMIT = Key {
        name: "bring_up_limit",
        kind: Kind::Whole { least: 1, most: 3600, unit: "seconds" },
        default: "",
        otherwise: "30 by the command dragon, 60 under a workload manager",
        shown: "SECONDS",
        help: "Seconds that the nodes may take to find each other.",
        reach: Reach::Nodes,
    };
    /// What happens when a node is lost.
    ON_NODE_FAILURE = Key {
        name: "on_node_failure",
        kind: Kind::Word(&["abort", "continue"]),
        default: "abort",
        otherwise: "",
        shown: "POLICY",
        help: "What happens when a node is lost: abort (the job ends with 125) or continue (a majority of the nodes goes on without it; under Slurm type srun --no-kill).",
        reach: Reach::Nodes,
    };
    /// After what silence a node is lost.
    NODE_LIMIT = Key {
        name: "node_limit",
        kind: Kind::Whole { least: 1, most: 3600, unit: "seconds" },
        default: "10",
        otherwise: "",
        shown: "SECONDS",
        help: "Seconds after which a node that says nothing is lost. The nodes hear of each other ten times in that time.",
        reach: Reach::Nodes,
    };
    /// The remote shell.
    RSH = Key {
        name: "rsh",
        kind: Kind::Text(command),
        default: "ssh",
        otherwise: "",
        shown: "RSH",
        help: "Command that runs another on a host: `RSH HOST COMMAND`.",
        reach: Reach::Launcher,
    };
    /// What stands before lines of output.
    LABEL = Key {
        name: "label",
        kind: Kind::Word(&["none", "node", "full"]),
        default: "none",
        otherwise: "",
        shown: "LABEL",
        help: "What stands before each line of output: nothing, the node's number, or node:process (with this the head has no terminal).",
        reach: Reach::Nodes,
    };
    /// When the job ends at the latest.
    TIME_LIMIT = Key {
        name: "time_limit",
        kind: Kind::Time,
        default: "",
        otherwise: "none",
        shown: "TIME",
        help: "How long the program may run: 90 (seconds), 1h30m, 2-00:30:00 (days-hh:mm:ss). At its end the job ends as by SIGTERM, with exit code 124.",
        reach: Reach::Nodes,
    };
    /// What the daemons log.
    LOG = Key {
        name: "log",
        kind: Kind::Text(log),
        default: "warn",
        otherwise: "",
        shown: "FILTER",
        help: "What the daemons log: error, warn, info, debug, trace, off, or a filter like warn,dragon_transport=debug.",
        reach: Reach::Nodes,
    };
    /// Where numbers are told to a monitoring system.
    METRICS = Key {
        name: "metrics",
        kind: Kind::Text(metrics::check),
        default: "",
        otherwise: "nowhere",
        shown: "ADDRESS",
        help: "Where each daemon tells its numbers to Prometheus: ADDRESS:PORT, PORT (of its own machine alone), or unix:/PATH. Nodes of one machine add their number.",
        reach: Reach::Nodes,
    };
    /// The interpreter.
    PYTHON = Key {
        name: "python",
        kind: Kind::Text(any),
        default: "",
        otherwise: "that of the virtual environment in use, else python3 on PATH",
        shown: "PATH",
        help: "Interpreter for Python programs.",
        reach: Reach::Programs,
    };
    /// Where processes go.
    PLACEMENT = Key {
        name: "placement",
        kind: Kind::Word(&["roundrobin", "block", "packed", "local", "remote"]),
        default: "",
        otherwise: "roundrobin",
        shown: "POLICY",
        help: "Where new processes go when their creator does not say: roundrobin, block, packed, local or remote.",
        reach: Reach::Programs,
    };
}

/// The setting of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().copied().find(|key| key.name == name)
}

/// The name that is most like this one, if one is like it at all.
#[must_use]
pub fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |known: &&str| strsim::jaro_winkler(name, known);
    let best = names
        .into_iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    best.filter(|known| likeness(known) > 0.7)
}

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn transport(name: &str) -> Result<(), String> {
    checked(Network {
        transport: name.to_owned(),
        ..Network::default()
    })
}

fn interface(interfaces: &str) -> Result<(), String> {
    checked(Network {
        interface: interfaces.to_owned(),
        ..Network::default()
    })
}

fn checked(network: Network) -> Result<(), String> {
    network::check(&network).map_err(|error| format!("{error:#}"))
}

fn command(words: &str) -> Result<(), String> {
    match words.split_whitespace().next() {
        Some(first) if Path::new(first).file_name() == Some(OsStr::new("pbs_tmrsh")) => Err(
            "pbs_tmrsh passes no standard input, by which the daemons learn what to do; in a job of PBS dragon PROGRAM without --rsh and --hostlist starts its nodes, by PBS itself".to_owned(),
        ),
        Some(first) if !first.starts_with('/') || Path::new(first).exists() => Ok(()),
        Some(first) => Err(format!("there is no {first}")),
        None => Err("the name of a command is wanted, like ssh".to_owned()),
    }
}

fn log(filter: &str) -> Result<(), String> {
    match tracing_subscriber::EnvFilter::builder().parse(filter) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!(
            "'{filter}' is no filter of logs ({error}); try warn or debug"
        )),
    }
}
