//! A cluster of nodes on this machine (`tests/rig/cluster`), which goes down with its value.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cpus::allowed;
use crate::local::{Finished, eventually_empty, repository, run};
use crate::site::Site;
use crate::suite::Shared;

/// Nodes in namespaces, with the product installed on them.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    manager: Manager,
    nodes: u32,
    site: Site,
    /// Variables for the rig.
    settings: Vec<(&'static str, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manager {
    None,
    Slurm,
    Pbs,
}

/// Where OpenPBS is installed, if it is.
const PBS: &str = "/opt/pbs";

/// Where clusters keep their state: reachable by ordinary users, and hidden from none of the nodes.
const FOLDER: &str = "/var/tmp";

impl Cluster {
    /// Nodes without a workload manager.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn plain(nodes: u32) -> Result<Self, String> {
        Self::up(nodes, Manager::None, &[])
    }

    /// Nodes with a real Slurm that has the plugin.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn slurm(nodes: u32) -> Result<Self, String> {
        Self::slurm_with(nodes, &[])
    }

    /// The same, where the site has set up its Slurm otherwise: variables of the rig.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn slurm_with(nodes: u32, settings: &[(&'static str, &str)]) -> Result<Self, String> {
        slurm_possible()?;
        Self::up(nodes, Manager::Slurm, settings)
    }

    /// The same, where control groups limit memory, tasks are bound to cores, and `KillOnBadExit=1`.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn slurm_constrained(nodes: u32, more: &[(&'static str, &str)]) -> Result<Self, String> {
        if !Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists() {
            return Err("control groups of the first version do not limit memory here".to_owned());
        }
        let own =
            std::fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
        let cpus = allowed(&own).len().to_string();
        let constrained = [
            ("RIG_CPUS", cpus.as_str()),
            ("RIG_TASK", "TaskPlugin=task/affinity,task/cgroup"),
            ("RIG_MEMORY", "1"),
            // And salloc has its shell on the login node.
            ("RIG_CONF", "KillOnBadExit=1\nDefMemPerCPU=500"),
        ];
        Self::slurm_with(nodes, &[&constrained, more].concat())
    }

    /// Whether it is one of those.
    #[must_use]
    pub fn is_constrained(&self) -> bool {
        self.settings.iter().any(|(name, _)| *name == "RIG_MEMORY")
    }

    /// Nodes with a real OpenPBS, each told to have 4 CPUs.
    ///
    /// # Errors
    /// Why there can be none here.
    pub fn pbs(nodes: u32) -> Result<Self, String> {
        pbs_possible()?;
        Self::up(nodes, Manager::Pbs, &[])
    }

    /// Without the product, the tests fail; only what this machine lacks lets them be skipped.
    fn up(nodes: u32, manager: Manager, settings: &[(&'static str, &str)]) -> Result<Self, String> {
        nodes_possible()?;
        installed("/usr/bin/python3")?;
        let folder = PathBuf::from(FOLDER).join(format!("dragon-rig-{}", std::process::id()));
        let site = Site::install(&folder.join("site")).and_then(Site::with_python);
        let site = site.and_then(|site| match manager {
            Manager::Slurm => site.with_plugin(),
            Manager::None | Manager::Pbs => Ok(site),
        });
        let site = site.unwrap_or_else(|error| panic!("the product cannot be installed: {error}"));
        let cluster = Self {
            folder,
            manager,
            nodes,
            site,
            settings: settings
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
        };
        let up = run(cluster.rig().args(["up", &nodes.to_string()]));
        if up.code == Some(0) {
            Ok(cluster)
        } else {
            panic!("the cluster did not come up: {}", up.err)
        }
    }

    /// The installed product.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Where the cluster keeps its configuration, logs and state.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.nodes).map(|n| format!("n{n}"))
    }

    /// The rig's own command.
    #[must_use]
    pub fn rig(&self) -> Command {
        self.rig_environment(repository().join("tests/rig/cluster"))
    }

    /// A program that calls the rig.
    #[must_use]
    pub fn rig_environment(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        let plugin = format!(
            "required {} dragond={}",
            self.site.plugin().display(),
            self.site.dragond().display()
        );
        command
            .env("RIG_RUN", &self.folder)
            .env("RIG_OWNER", std::process::id().to_string())
            .env("RIG_PLUGSTACK", plugin);
        // As in a shell in which the virtual environment is active.
        command.env("RIG_PATH", self.site.venv().join("bin"));
        match self.manager {
            Manager::None => {}
            Manager::Slurm => {
                command.env("RIG_SLURM", "1");
                // salloc has its shell on the first node of the job.
                command.env("RIG_CONF", "LaunchParameters=use_interactive_step");
                // As sites have it: what a step leaves behind is found by its control group.
                if Path::new("/sys/fs/cgroup/freezer").exists() {
                    command.env("RIG_CGROUP", "1");
                }
            }
            Manager::Pbs => {
                command.env("RIG_PBS", PBS).env("RIG_CPUS", "4");
            }
        }
        command
            .envs(self.settings.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Starts nodes again that were killed, and waits until Slurm uses all of them.
    ///
    /// # Panics
    /// When they do not come back.
    pub fn revive(&self) {
        for node in self.nodes() {
            if run(self.rig().args(["exec", &node, "true"])).code != Some(0) {
                assert_eq!(run(self.rig().args(["start", &node])).code, Some(0));
            }
        }
        // slurmctld may not have missed a node that died, and takes it for idle before its slurmd answers.
        let all = format!("-N{}", self.nodes);
        eventually_empty("the list of nodes", || {
            let idle = self.login(["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]);
            if idle.out.lines().count() != self.nodes as usize {
                return format!("{:?}", self.login(["sinfo", "-N", "-l"]));
            }
            let step = self.login(["srun", &all, "true"]);
            if step.code == Some(0) {
                String::new()
            } else {
                format!("{step:?}")
            }
        });
    }

    /// Does something while slurm.conf has more lines.
    ///
    /// # Panics
    /// When Slurm does not take them.
    pub fn configured<T>(&self, more: &str, during: impl FnOnce() -> T) -> T {
        let file = self.folder.join("etc/slurm.conf");
        let before = std::fs::read_to_string(&file).expect("the rig has written it");
        let configure = |text: &str| {
            std::fs::write(&file, text).expect("it can be written");
            let done = run(&mut self.on("ctl", ["-u", "root", "scontrol", "reconfigure"]));
            assert_eq!(done.code, Some(0), "{done:?}");
        };
        configure(&format!("{before}\n{more}\n"));
        let result = during();
        configure(&before);
        result
    }

    /// Ends the daemon of Slurm that a node has, and starts it again. slurmctld may save its state: without that it would take jobs
    /// that ended a moment ago for others, and their nodes out of use.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn restart_slurm(&self, node: &str) {
        let (name, signal) = match node {
            "ctl" => ("slurmctld", "TERM"),
            _ => ("slurmd", "KILL"),
        };
        let log = self.folder.join(format!("log/{name}-{node}-again.out"));
        let script = format!(
            "old=$(pgrep -x {name}) && kill -{signal} $old && while kill -0 $old 2> /dev/null; do sleep 0.02; done
            setsid {name} -D > {} 2>&1 < /dev/null &",
            log.display()
        );
        let done = run(&mut self.on(node, ["-u", "root", "sh", "-c", &script]));
        assert_eq!(done.code, Some(0), "{done:?}");
    }

    /// The home of an ordinary user, which all nodes share.
    #[must_use]
    pub fn home(&self, user: &str) -> PathBuf {
        self.folder.join("home").join(user)
    }

    /// A command on a node, as an ordinary user.
    pub fn on<'a>(&self, node: &str, words: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = self.rig();
        command.args(["exec", node]).args(words);
        command
    }

    /// Runs a command on the login node to its end.
    pub fn login<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Finished {
        run(&mut self.on("ctl", words))
    }

    /// How many bytes a daemon on a node says to a user who connects to its attach socket and speaks as a client does.
    ///
    /// # Panics
    /// When the node has no daemon.
    #[must_use]
    pub fn bytes_for(&self, node: &str, user: &str) -> usize {
        // Head and body of an answer may come one after the other.
        let program = "import socket\n\
            names = [l.split()[-1] for l in open('/proc/net/unix') if '@dragon/' in l and l.split()[3] == '00010000']\n\
            s = socket.socket(socket.AF_UNIX); s.settimeout(30); s.connect('\\0' + names[0][1:])\n\
            try: s.sendall(b'DRGNATT1' + bytes([1, 0, 1, 0] + [0] * 12))\n\
            except OSError: pass\n\
            try: print(len(s.recv(1000)))\n\
            except OSError as e: print(0)\n";
        let done = run(&mut self.on(node, ["-u", user, "/usr/bin/python3", "-c", program]));
        let bytes = done.out.trim().parse();
        bytes.unwrap_or_else(|_| panic!("{done:?}"))
    }

    /// What a job left on a node: processes of users, shared memory, sockets, files, control groups of Slurm's jobs with anybody in
    /// them. A process that has ended and waits for the node's PID 1 to notice is none, and an empty control group is what a
    /// slurmstepd leaves that was killed.
    #[must_use]
    pub fn traces(&self, node: &str) -> String {
        let look = "ps -eo user,stat,pid,args | awk '$1 ~ /^(alice|bob)$/ && $2 !~ /^Z/'; find /dev/shm /tmp /run -mindepth 1 \\( -user alice -o -user bob \\) 2>/dev/null; find /sys/fs/cgroup/freezer /sys/fs/cgroup/memory -path '*/slurm*/job_*' -name cgroup.procs -exec grep -H . {} + 2>/dev/null; grep @dragon /proc/net/unix; true";
        run(&mut self.on(node, ["-u", "root", "sh", "-c", look]))
            .out
            .trim()
            .to_owned()
    }

    /// Fails the test when something is left on a node. What was killed a moment ago may still be on its way out.
    ///
    /// # Panics
    /// When something is left.
    pub fn assert_nothing_left(&self) {
        for node in self.nodes() {
            eventually_empty(&node, || self.traces(&node));
        }
    }
}

impl Shared for Cluster {
    /// The jobs that a failed case has left would hold the nodes that the next one needs.
    fn tidy(&self) {
        if self.manager != Manager::Slurm {
            return;
        }
        // A node may be gone.
        let as_root =
            |node: &str, script| drop(run(&mut self.on(node, ["-u", "root", "sh", "-c", script])));
        as_root(
            "ctl",
            "scancel -s KILL -u alice; scancel -s KILL -u bob; exit 0",
        );
        for node in self.nodes().chain(["ctl".to_owned()]) {
            as_root(&node, "pkill -9 -u alice; pkill -9 -u bob; exit 0");
        }
    }
}

/// Whether nodes can be made here.
///
/// # Errors
/// What is missing.
pub fn nodes_possible() -> Result<(), String> {
    let me = std::fs::metadata("/proc/self").map_err(|error| error.to_string())?;
    if std::os::unix::fs::MetadataExt::uid(&me) != 0 {
        return Err("namespaces need root".to_owned());
    }
    ["unshare", "nsenter", "setpriv", "ip"]
        .into_iter()
        .try_for_each(installed)
}

/// Whether nodes with a Slurm can be made here.
///
/// # Errors
/// What is missing.
pub fn slurm_possible() -> Result<(), String> {
    ["slurmctld", "slurmd", "munged", "srun"]
        .into_iter()
        .try_for_each(installed)?;
    nodes_possible()
}

/// Whether nodes with an OpenPBS can be made here.
///
/// # Errors
/// What is missing.
pub fn pbs_possible() -> Result<(), String> {
    if !Path::new(PBS).join("sbin/pbs_server").exists() {
        return Err(format!(
            "there is no OpenPBS in {PBS}; docs/testing.md tells how it is built"
        ));
    }
    nodes_possible()
}

fn installed(program: &str) -> Result<(), String> {
    let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(program).exists());
    if found {
        Ok(())
    } else {
        Err(format!("{program} is not installed"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = run(self.rig().arg("down"));
        if down.code != Some(0) {
            eprintln!(
                "the cluster in {} did not go down: {}",
                self.folder.display(),
                down.err
            );
        } else if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}
