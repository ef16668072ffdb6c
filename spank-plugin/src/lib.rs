//! The SPANK plugin: it registers `--dragon`, and names `dragond` in the place of the user's program: in srun; for sbatch
//! and salloc in the task of the script or shell.
//!
//! That is all. Nothing of it runs as root but the registration of the option and a bounded look at its value; nothing
//! stays in slurmstepd; Slurm itself launches `dragond` as the step's task. The plugin's name is part of the variable by
//! which Slurm passes the option on to the steps of a job, so it never changes.
//!
//! plugstack.conf: `optional libdragon_spank.so dragond=/usr/libexec/dragon/dragond`

mod wish;

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use slurm_spank_sys as spank;
use spank::{Context, Handle, OptionSpec, Spank};
use wish::Wish;

/// The wish of the user, from the option's callback to the start of the job.
static WANTED: Mutex<Option<Wish>> = Mutex::new(None);
/// Whether the wish is one that the job has handed on to its steps.
static INHERITED: AtomicBool = AtomicBool::new(false);

const OPTION: OptionSpec = OptionSpec {
    name: c"dragon",
    argument: c"head|spmd|off[,SETTING=VALUE,...]",
    usage: c"a Dragon runtime over all nodes: srun runs the program as its head (head, the default) or as every task (spmd), sbatch and salloc the script or shell in it",
    callback: dragon_option,
};

/// Path of `dragond`, or what is wrong with the line of plugstack.conf that should name it.
static DRAGOND: Mutex<Option<Result<CString, String>>> = Mutex::new(None);
const DEFAULT_DRAGOND: &CStr = c"/usr/libexec/dragon/dragond";

fn init(plugin: &Spank<'_>) -> bool {
    match spank::context() {
        Context::Local | Context::Allocator => {
            *DRAGOND.lock().unwrap_or_else(PoisonError::into_inner) =
                Some(configured(plugin.arguments()));
            plugin.register(&OPTION)
        }
        Context::Remote => plugin.register(&OPTION),
        Context::Other => true,
    }
}

/// Gives back what the statics hold: Slurm unloads the plugin, and nobody else could.
fn exit(_: &Spank<'_>) -> bool {
    *DRAGOND.lock().unwrap_or_else(PoisonError::into_inner) = None;
    *WANTED.lock().unwrap_or_else(PoisonError::into_inner) = None;
    true
}

/// The path that [`init`] has found.
fn dragond() -> Option<Result<CString, String>> {
    DRAGOND
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Reads the plugin's words in plugstack.conf.
fn configured(words: &[&CStr]) -> Result<CString, String> {
    let mut dragond = DEFAULT_DRAGOND.to_owned();
    for word in words {
        match word.to_bytes().strip_prefix(b"dragond=") {
            Some(path) if path.starts_with(b"/") => dragond = CString::new(path).unwrap_or(dragond),
            _ => {
                return Err(format!(
                    "plugstack.conf: {}: the plugin takes only dragond=/PATH/TO/dragond; ask your administrator",
                    word.to_string_lossy()
                ));
            }
        }
    }
    Ok(dragond)
}

/// An argument that was left out, as Slurm hands it on to the steps of a job.
const NO_ARGUMENT: &str = "(null)";

/// Looks at the option's value. In slurmstepd it was seen by srun before, and changes nothing.
fn choose(value: Option<&OsStr>) -> bool {
    let context = spank::context();
    INHERITED.store(value == Some(OsStr::new(NO_ARGUMENT)), Ordering::Relaxed);
    // A missing argument is null in srun, empty in a batch step, and this in a step of a job that has the option.
    let text = value
        .map(OsStr::to_string_lossy)
        .filter(|text| text != NO_ARGUMENT);
    let wish = Wish::read(text.as_deref().unwrap_or_default());
    let refusal = match (wish.mode.as_str(), context) {
        (_, Context::Remote) => None,
        ("off", _) if !wish.settings.is_empty() => Some("--dragon=off: without a runtime there are no settings".to_owned()),
        ("off", _) => None,
        ("spmd", Context::Allocator) => Some("--dragon=spmd is for srun, whose tasks are the program; inside the job, leave --dragon out of sbatch and salloc and type srun --dragon=spmd PROGRAM".to_owned()),
        ("spmd", Context::Local) if has_runtime() => Some("--dragon=spmd: this job has a runtime, and the tasks of its steps attach to it; leave the option out".to_owned()),
        (_, Context::Local) if !wish.settings.is_empty() && has_runtime() => Some("--dragon: this job has a runtime, whose settings are those of its sbatch or salloc; leave the settings out".to_owned()),
        ("head" | "spmd", _) => dragond().and_then(Result::err),
        (other, _) => Some(format!("--dragon={other:.80}: unknown mode; use --dragon, --dragon=head, --dragon=spmd or --dragon=off")),
    };
    if let Some(text) = &refusal {
        spank::error(text);
    }
    let accepted = refusal.is_none() && (context == Context::Remote || has_sense(&wish));
    let wish = (accepted && wish.mode != "off").then_some(wish);
    *WANTED.lock().unwrap_or_else(PoisonError::into_inner) = wish;
    accepted
}

/// Whether the settings make sense; `dragond` has said what does not.
fn has_sense(wish: &Wish) -> bool {
    match dragond() {
        Some(Ok(dragond)) => wish.makes_sense(&dragond),
        _ => true,
    }
}

/// Whether the job around this srun has a runtime. A job hands its environment on to those that it submits: the name in there
/// must be one of this job.
fn has_runtime() -> bool {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    let (runtime, job) = (text("DRAGON_RUNTIME"), text("SLURM_JOB_ID"));
    let of = runtime
        .split('/')
        .nth(2)
        .and_then(|name| name.split_once('.'));
    of.is_some_and(|(of, _)| !job.is_empty() && of == job)
}

/// The wish, where there is one and this is where it counts.
fn wanted(context: Context) -> Option<Wish> {
    let wish = WANTED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    wish.filter(|_| spank::context() == context)
}

/// In srun, before it asks for an allocation: looks at what no runtime can be made of.
fn look_at_shape(_: &Spank<'_>) -> bool {
    if wanted(Context::Local).is_some() && !attaches_by_itself() {
        let words: Vec<_> = std::env::args_os().skip(1).collect();
        spank::or_end(AssertUnwindSafe(|| {
            wish::refused_shape(&words, &spank::options()).map_or(Ok(()), Err)
        }));
    }
    true
}

/// Whether this is a step of a job that has a runtime and the option, which is handed on: its tasks attach by themselves.
fn attaches_by_itself() -> bool {
    has_runtime() && INHERITED.load(Ordering::Relaxed)
}

/// In srun, as the user: makes the key and puts `dragond` in the place of the program. Where a runtime runs already, the
/// program becomes a head in it, unless the option is one that the job has handed on: then the tasks attach by themselves.
fn start(plugin: &Spank<'_>) -> bool {
    let Some(wish) = wanted(Context::Local).filter(|_| !plugin.is_script_or_shell()) else {
        return true;
    };
    if !attaches_by_itself() {
        spank::or_end(AssertUnwindSafe(|| start_step(plugin, wish)));
    }
    true
}

fn start_step(plugin: &Spank<'_>, wish: Wish) -> Result<(), String> {
    let dragond = dragond().ok_or("srun has not loaded the plugin")??;
    let mut key = [0; 32];
    if !spank::random(&mut key) {
        return Err("no random numbers from the kernel".to_owned());
    }
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let options = std::env::args_os().skip(1);
    let options: Vec<_> = options.collect();
    let options = &options[..options.len().saturating_sub(plugin.program_words())];
    let bad_exit =
        wish::kills_on_bad_exit(options).map_or(c"", |kills| if kills { c"1" } else { c"0" });
    let program = plugin.replace_program(&dragond);
    let program = program.ok_or("srun has no program to run")?;
    // None of them has a NUL in it: they are digits, or came as terminated strings.
    let text = |text: String| CString::new(text).unwrap_or_default();
    let (hex, mode, settings) = (text(hex), text(wish.mode), text(wish.settings));
    let set = [
        (KEY, hex.as_c_str()),
        (PROGRAM, &program),
        (DRAGOND_PATH, &dragond),
        (MODE, if has_runtime() { c"inside" } else { &mode }),
        (SETTINGS, &settings),
        (c"SLURM_DRAGON_STEP_BAD_EXIT", bad_exit),
    ];
    let all = set
        .into_iter()
        .all(|(name, value)| spank::set_environment(name, value));
    all.then_some(()).ok_or_else(no_environment)
}

/// In a task of a job or step that has the option, as the user.
fn start_task(plugin: &Spank<'_>) -> bool {
    if let Some(wish) = wanted(Context::Remote) {
        spank::or_end(AssertUnwindSafe(|| {
            if plugin.is_script_or_shell() {
                start_keeper(plugin, wish)
            } else {
                keep_place(plugin)
            }
        }));
    }
    true
}

/// Puts `dragond` back where srun has put the name of a copy there after [`start`]: with `--bcast` it does, from 23.02 on.
fn keep_place(plugin: &Spank<'_>) -> Result<(), String> {
    // Without it, [`start`] has left the program alone.
    let Some(dragond) = plugin.task_environment(DRAGOND_PATH) else {
        return Ok(());
    };
    if plugin.program().as_ref() == Some(&dragond) {
        return Ok(());
    }
    let copy = plugin.replace_program(&dragond);
    let copy = copy.ok_or("the task has no program to run")?;
    let set = plugin.set_task_environment(PROGRAM, &copy);
    set.then_some(()).ok_or_else(no_environment)
}

/// In the task of a batch script or an interactive shell: puts `dragond` in its place.
fn start_keeper(plugin: &Spank<'_>, wish: Wish) -> Result<(), String> {
    let dragond = configured(plugin.arguments())?;
    let program = plugin.replace_program(&dragond);
    let program = program.ok_or("the job has no script to run")?;
    // It came as a terminated string.
    let settings = CString::new(wish.settings).unwrap_or_default();
    let set = [
        (PROGRAM, program.as_c_str()),
        (MODE, c"allocation"),
        (SETTINGS, &settings),
    ];
    let all = set
        .into_iter()
        .all(|(name, value)| plugin.set_task_environment(name, value));
    all.then_some(()).ok_or_else(no_environment)
}

fn no_environment() -> String {
    "Slurm does not set the environment of the job's tasks".to_owned()
}

// Only names with this prefix reach the tasks whatever --export says. `dragond` keeps them from user programs.
const KEY: &CStr = c"SLURM_DRAGON_STEP_KEY";
const PROGRAM: &CStr = c"SLURM_DRAGON_STEP_PROGRAM";
const DRAGOND_PATH: &CStr = c"SLURM_DRAGON_STEP_DRAGOND";
const MODE: &CStr = c"SLURM_DRAGON_STEP_MODE";
const SETTINGS: &CStr = c"SLURM_DRAGON_STEP_SETTINGS";

/// Slurm's name for this plugin.
#[unsafe(no_mangle)]
pub static plugin_name: [u8; 7] = *b"dragon\0";
/// Slurm's kind of plugin.
#[unsafe(no_mangle)]
pub static plugin_type: [u8; 6] = *b"spank\0";
/// The Slurm release that this plugin is for.
#[unsafe(no_mangle)]
pub static plugin_version: u32 = parse(env!("SLURM_VERSION_NUMBER"));
/// Version of SPANK plugins.
#[unsafe(no_mangle)]
pub static spank_plugin_version: u32 = 1;

const fn parse(digits: &str) -> u32 {
    let (mut number, mut at) = (0, 0);
    while at < digits.len() {
        number = number * 10 + (digits.as_bytes()[at] - b'0') as u32;
        at += 1;
    }
    number
}

/// Called by Slurm when it loads the plugin.
///
/// # Safety
/// Slurm passes its own handle and the plugin's arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init(
    handle: *mut Handle,
    count: c_int,
    words: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as they came.
    unsafe { spank::callback(handle, count, words, init) }
}

/// Called when all options have been read.
///
/// # Safety
/// As [`slurm_spank_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init_post_opt(
    handle: *mut Handle,
    count: c_int,
    words: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as they came.
    unsafe { spank::callback(handle, count, words, look_at_shape) }
}

/// Called in srun when the job is known.
///
/// # Safety
/// As [`slurm_spank_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_local_user_init(
    handle: *mut Handle,
    count: c_int,
    words: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as they came.
    unsafe { spank::callback(handle, count, words, start) }
}

/// Called by Slurm before it unloads the plugin.
///
/// # Safety
/// As [`slurm_spank_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_exit(
    handle: *mut Handle,
    count: c_int,
    words: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as they came.
    unsafe { spank::callback(handle, count, words, exit) }
}

/// Called in each task before it executes its program.
///
/// # Safety
/// As [`slurm_spank_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_task_init(
    handle: *mut Handle,
    count: c_int,
    words: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as they came.
    unsafe { spank::callback(handle, count, words, start_task) }
}

unsafe extern "C" fn dragon_option(_: c_int, argument: *const c_char, _: c_int) -> c_int {
    // SAFETY: passed on as it came.
    unsafe { spank::option_callback(argument, choose) }
}
