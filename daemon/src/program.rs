//! From the words that a user typed to a program that can be executed.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use dragon_protocol::env;

/// Exit code when a program does not exist, as shells have it.
pub const NOT_FOUND: u8 = 127;
/// Exit code when a program exists but cannot be executed, as shells have it.
pub const NOT_EXECUTABLE: u8 = 126;

/// A program that can be executed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The words of `execve`: the first is the path of the executable.
    pub words: Vec<OsString>,
    /// The interpreter, when it is a Python program: its node warms one up for workers.
    pub python: Option<PathBuf>,
}

/// A program that cannot be executed: the sentence to print and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong and what to do.
    pub text: String,
    /// [`NOT_FOUND`] or [`NOT_EXECUTABLE`].
    pub code: u8,
}

/// Resolves a command line as a shell does. A Python file without execute permission, and one whose first line asks for
/// whichever Python is on PATH, is run by [`interpreter`].
///
/// # Errors
/// When the program does not exist, is a directory, or is neither executable nor a Python file.
pub fn resolve(words: &[OsString]) -> Result<Program, Refusal> {
    resolve_in(words, std::env::var_os("PATH").as_deref(), None)
}

/// As [`resolve`], for a process with another PATH and another working directory (`None`: this one's).
///
/// # Errors
/// As [`resolve`].
pub fn resolve_in(
    words: &[OsString],
    path: Option<&OsStr>,
    directory: Option<&Path>,
) -> Result<Program, Refusal> {
    let place = Place { path, directory };
    let Some(name) = words.first().filter(|name| !name.is_empty()) else {
        return Err(Refusal {
            text: "no program given; type dragon --help".to_owned(),
            code: NOT_FOUND,
        });
    };
    let path = place.find(name)?;
    let file = place.at(&path);
    let executable = is_executable(&file);
    let is_python_file = path.extension() == Some(OsStr::new("py"));
    let python = match first_line(&file) {
        Some(Interpreter::Python(python)) if executable => Some(python),
        // Whichever python3 is meant: the one of this command's environment, also when that is not activated.
        Some(Interpreter::AnyPython) => return run_by(interpreter()?, path, words),
        _ if executable => None,
        _ if is_python_file => return run_by(interpreter()?, path, words),
        _ => {
            let text = format!(
                "{}: not executable; type chmod +x, or name its interpreter",
                path.display()
            );
            return Err(Refusal {
                text,
                code: NOT_EXECUTABLE,
            });
        }
    };
    let words = std::iter::once(path.into_os_string())
        .chain(words[1..].iter().cloned())
        .collect();
    Ok(Program { words, python })
}

fn run_by(python: PathBuf, script: PathBuf, words: &[OsString]) -> Result<Program, Refusal> {
    let first = [python.clone().into_os_string(), script.into_os_string()];
    Ok(Program {
        words: first
            .into_iter()
            .chain(words[1..].iter().cloned())
            .collect(),
        python: Some(python),
    })
}

/// Where a program is looked for.
struct Place<'a> {
    path: Option<&'a OsStr>,
    directory: Option<&'a Path>,
}

impl Place<'_> {
    /// A path as it is from here.
    fn at(&self, path: &Path) -> PathBuf {
        self.directory
            .map_or_else(|| path.to_owned(), |directory| directory.join(path))
    }

    fn find(&self, name: &OsStr) -> Result<PathBuf, Refusal> {
        let here = PathBuf::from(name);
        if name.as_bytes().contains(&b'/') {
            return self.check(&here, name);
        }
        match self.search(name) {
            Some(path) => Ok(path),
            // `dragon prog.py` names a file of the working directory, as `python prog.py` does.
            None if here.extension() == Some(OsStr::new("py")) && self.at(&here).exists() => {
                self.check(&Path::new(".").join(here), name)
            }
            None => {
                let hint = if self.at(&here).exists() {
                    format!("; it is in this directory: type ./{}", here.display())
                } else {
                    String::new()
                };
                Err(Refusal {
                    text: format!("{}: command not found on PATH{hint}", here.display()),
                    code: NOT_FOUND,
                })
            }
        }
    }

    fn check(&self, path: &Path, name: &OsStr) -> Result<PathBuf, Refusal> {
        match fs::metadata(self.at(path)) {
            Ok(meta) if meta.is_dir() => Err(Refusal {
                text: format!("{}: is a directory, not a program", name.display()),
                code: NOT_EXECUTABLE,
            }),
            Ok(_) => Ok(path.to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(Refusal {
                text: format!("{}: permission denied", name.display()),
                code: NOT_EXECUTABLE,
            }),
            Err(error) => Err(Refusal {
                text: format!("{}: {}", name.display(), reason(&error)),
                code: NOT_FOUND,
            }),
        }
    }

    fn search(&self, name: &OsStr) -> Option<PathBuf> {
        std::env::split_paths(self.path?)
            .map(|folder| folder.join(name))
            .find(|file| is_executable(&self.at(file)))
    }
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file".to_owned(),
        _ => error.to_string(),
    }
}

fn is_executable(path: &Path) -> bool {
    let executable = |meta: &fs::Metadata| meta.is_file() && meta.permissions().mode() & 0o111 != 0;
    fs::metadata(path).is_ok_and(|meta| executable(&meta))
        && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The interpreter that the settings name.
static CHOSEN: OnceLock<OsString> = OnceLock::new();

/// From now on Python programs are run by this interpreter, where `DRAGON_PYTHON` says nothing else. Empty: no choice.
pub fn use_interpreter(path: &str) {
    if !path.is_empty() {
        // The settings are read once.
        let _ = CHOSEN.set(path.into());
    }
}

/// The interpreter for Python programs: `DRAGON_PYTHON`, the virtual environment of this command or the active one, or
/// `python3` on PATH.
///
/// # Errors
/// When there is none.
pub fn interpreter() -> Result<PathBuf, Refusal> {
    let path = std::env::var_os("PATH");
    let place = Place {
        path: path.as_deref(),
        directory: None,
    };
    let configured = || CHOSEN.get().cloned();
    if let Some(chosen) = std::env::var_os(env::PYTHON).or_else(configured) {
        return place.find(&chosen);
    }
    let own = std::env::current_exe()
        .ok()
        .and_then(|exe| venv_python(exe.parent()?.parent()?));
    let active = || std::env::var_os("VIRTUAL_ENV").and_then(|venv| venv_python(Path::new(&venv)));
    own.or_else(active).or_else(|| place.search(OsStr::new("python3"))).ok_or_else(|| Refusal {
        text: format!("a Python program needs python3 on PATH, an active virtual environment, or {} with its path", env::PYTHON),
        code: NOT_FOUND,
    })
}

fn venv_python(root: &Path) -> Option<PathBuf> {
    let python = root.join("bin/python3");
    (root.join("pyvenv.cfg").is_file() && is_executable(&python)).then_some(python)
}

/// What runs a file, as far as Python is concerned.
enum Interpreter {
    /// A certain one: the file is an interpreter itself, or its first line names one by its path.
    Python(PathBuf),
    /// The one on PATH: the first line says `env python3`.
    AnyPython,
}

fn first_line(path: &Path) -> Option<Interpreter> {
    let is_python = |name: &OsStr| name.as_bytes().starts_with(b"python");
    if path.file_name().is_some_and(is_python) {
        return Some(Interpreter::Python(path.to_owned()));
    }
    let mut head = [0; 256];
    let length = fs::File::open(path).ok()?.read(&mut head).ok()?;
    let line = head[..length]
        .strip_prefix(b"#!")?
        .split(|b| *b == b'\n')
        .next()?;
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let first = PathBuf::from(OsString::from_vec(words.next()?.to_vec()));
    if first.file_name() == Some(OsStr::new("env")) {
        return words
            .next()
            .is_some_and(|name| is_python(OsStr::from_bytes(name)))
            .then_some(Interpreter::AnyPython);
    }
    first
        .file_name()
        .is_some_and(is_python)
        .then_some(Interpreter::Python(first))
}
