//! Programs that must fit together: the daemon, the Python package, the plugin of the workload manager.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dragon_protocol::RELEASE;

use super::Check;
use crate::ask::said;
use crate::program;

const PLUGIN: &str = "libdragon_spank.so";

/// The daemon that this command would start.
pub(super) fn daemon() -> Check {
    const NAME: &str = "dragond";
    let change = "install dragon and dragond of one release into one folder";
    let path = match crate::cli::launcher::dragond() {
        Ok(path) => path,
        Err(error) => return Check::fail(NAME, format!("{error:#}"), change),
    };
    let shown = path.display();
    match said(Command::new(&path).arg("--version")) {
        Ok(text) if release_of(&text) == RELEASE => {
            Check::ok(NAME, format!("{shown} is of release {RELEASE}"))
        }
        Ok(text) => Check::fail(
            NAME,
            format!("{shown} says '{text}', this command is of release {RELEASE}"),
            change,
        ),
        Err(why) => Check::fail(NAME, format!("{shown}: {why}"), change),
    }
}

/// The Python package.
pub(super) fn python() -> Check {
    const NAME: &str = "Python package";
    let interpreter = match program::interpreter() {
        Ok(interpreter) => interpreter,
        Err(no) => return Check::warn(NAME, "there is no Python", no.text),
    };
    let shown = interpreter.display();
    let mut command = Command::new(&interpreter);
    command.args(["-c", "import dragon; print(dragon.__version__)"]);
    match said(&mut command) {
        Ok(release) if release == RELEASE => {
            Check::ok(NAME, format!("{shown} has release {RELEASE}"))
        }
        Ok(release) => Check::fail(
            NAME,
            format!("{shown} has release '{release}', this command is of release {RELEASE}"),
            format!(
                "python3 -m pip install dragon=={RELEASE}, into the environment of that interpreter"
            ),
        ),
        Err(why) => Check::warn(
            NAME,
            format!("{shown} cannot import it: {why}"),
            "Python programs cannot use the runtime: install the package into the environment of that interpreter, or name another one by DRAGON_PYTHON",
        ),
    }
}

/// Whether this process is in a job of Slurm, or this machine can have one.
pub(super) fn is_slurm() -> bool {
    std::env::var_os("SLURM_JOB_ID").is_some()
        || said(Command::new("srun").arg("--version")).is_ok()
}

/// Slurm, or none.
pub(super) fn workload_manager() -> Check {
    const NAME: &str = "workload manager";
    let inside = std::env::var_os("SLURM_JOB_ID").is_some();
    let version = match said(Command::new("srun").arg("--version")) {
        Ok(version) => version,
        Err(why) if inside => {
            return Check::fail(
                NAME,
                format!("this is a job of Slurm, but srun cannot be run: {why}"),
                "put Slurm's commands on PATH",
            );
        }
        Err(_) if program::resolve(&["srun".into()]).is_err() => {
            return Check::ok(
                NAME,
                "none; several nodes are reached by --hostlist and ssh",
            );
        }
        Err(why) => {
            return Check::warn(
                NAME,
                format!("there is a Slurm, but srun does not work: {why}"),
                "correct its configuration (slurm.conf, SLURM_CONF), if jobs are to be run by it",
            );
        }
    };
    let Some(file) = plugstack() else {
        return Check::warn(
            NAME,
            format!("{version}, without a plugstack.conf"),
            format!(
                "srun --dragon needs the plugin; the administrator writes into plugstack.conf: optional {PLUGIN} dragond=/PATH/TO/dragond"
            ),
        );
    };
    let Some(line) = plugin_line(&file, 0) else {
        return Check::warn(
            NAME,
            format!("{version}; {} does not name {PLUGIN}", file.display()),
            format!(
                "srun --dragon needs the plugin; the administrator adds: optional {PLUGIN} dragond=/PATH/TO/dragond"
            ),
        );
    };
    let found = format!("{version}; {}: {}", file.display(), line.text);
    if line.plugin.is_absolute() && !line.plugin.exists() {
        return Check::fail(
            NAME,
            format!("{found}: there is no {}", line.plugin.display()),
            "a required plugin that is missing stops every job of the site: install it, or remove the line",
        );
    }
    match said(Command::new(&line.dragond).arg("--version")) {
        Ok(text) if release_of(&text) == RELEASE => Check::ok(NAME, found),
        Ok(text) => Check::warn(
            NAME,
            format!("{found}; that is '{text}', this command is of release {RELEASE}"),
            "jobs in an active virtual environment use its own dragond; others need one release everywhere",
        ),
        Err(why) => Check::fail(
            NAME,
            format!("{found}; {}: {why}", line.dragond.display()),
            "the administrator corrects dragond= to where it lies on all nodes",
        ),
    }
}

/// What the plugin's line says.
#[derive(Debug, PartialEq, Eq)]
struct PluginLine {
    text: String,
    plugin: PathBuf,
    dragond: PathBuf,
}

/// Where Slurm reads its list of plugins.
fn plugstack() -> Option<PathBuf> {
    let configured = said(Command::new("scontrol").args(["show", "config"])).ok();
    let configured = configured
        .as_deref()
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == "PlugStackConfig").then(|| PathBuf::from(value.trim()))
        });
    let beside = std::env::var_os("SLURM_CONF")
        .and_then(|file| Some(Path::new(&file).parent()?.join("plugstack.conf")));
    let usual = [
        "/etc/slurm/plugstack.conf",
        "/etc/slurm-llnl/plugstack.conf",
    ]
    .map(PathBuf::from);
    let mut files = configured.into_iter().chain(beside).chain(usual);
    files.find(|file| file.is_file())
}

/// The line that names our plugin, in a file or in those that it includes.
fn plugin_line(file: &Path, depth: u32) -> Option<PluginLine> {
    const DEEPEST: u32 = 8;
    let text = fs::read_to_string(file).ok().filter(|_| depth < DEEPEST)?;
    text.lines().map(str::trim).find_map(|line| {
        let mut words = line.split_whitespace();
        match words.next()? {
            "include" => {
                let files = matching(Path::new(words.next()?));
                files.iter().find_map(|file| plugin_line(file, depth + 1))
            }
            "optional" | "required" => {
                let plugin = PathBuf::from(words.next()?);
                let dragond = words.find_map(|word| word.strip_prefix("dragond="));
                let dragond = dragond.unwrap_or("/usr/libexec/dragon/dragond").into();
                (plugin.file_name()? == PLUGIN).then(|| PluginLine {
                    text: line.to_owned(),
                    plugin,
                    dragond,
                })
            }
            _ => None,
        }
    })
}

/// The files that an include means: one, or those of a folder whose names begin and end as the pattern does.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let Some((begin, end)) = name.split_once('*') else {
        return vec![pattern.to_owned()];
    };
    let entries = pattern
        .parent()
        .map(fs::read_dir)
        .into_iter()
        .flatten()
        .flatten()
        .flatten();
    let is_it = |path: &PathBuf| {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end)
    };
    let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(is_it).collect();
    files.sort();
    files
}

/// The last word: `dragond 0.1.0`.
fn release_of(text: &str) -> &str {
    text.rsplit(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_is_found_through_includes() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let main = folder.path().join("plugstack.conf");
        let shown = folder.path().display();
        write(
            "plugstack.conf",
            &format!("# optional {PLUGIN}\nrequired other.so x=1\ninclude {shown}/c/*.conf\n"),
        );
        assert_eq!(plugin_line(&main, 0), None);
        fs::create_dir(folder.path().join("c")).unwrap();
        write("c/b.conf.bak", &format!("required {PLUGIN}\n"));
        assert_eq!(plugin_line(&main, 0), None);
        write(
            "c/b.conf",
            &format!("required /x/{PLUGIN} dragond=/y/dragond\n"),
        );
        let line = plugin_line(&main, 0).unwrap();
        assert_eq!(
            (line.plugin, line.dragond),
            (format!("/x/{PLUGIN}").into(), "/y/dragond".into())
        );
        // One that includes itself ends all the same.
        write(
            "plugstack.conf",
            &format!("include {shown}/plugstack.conf\n"),
        );
        assert_eq!(plugin_line(&main, 0), None);
    }
}
