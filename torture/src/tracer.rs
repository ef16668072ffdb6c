//! A process under trace: forked from here, run to a marker, stepped instruction by instruction, killed.
//!
//! A marker is a signal that the victim raises on itself. It never reaches the victim: the kernel stops a traced process at
//! the delivery of any signal, and the tracer lets it go on without it.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use libc::{c_int, c_void, pid_t};

/// How a stop, or the end, of a victim came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It executed one more instruction.
    Step,
    /// It raised a marker.
    Marker(Marker),
    /// Another signal is about to be delivered to it.
    Signal(c_int),
    /// It has become another program.
    Exec,
    /// It sleeps in a system call; the instruction has not ended.
    Asleep,
    /// It has ended.
    Ended(c_int),
}

/// What a victim says to its tracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marker {
    /// The operation begins, or has ended.
    Edge,
    /// The survivor is to do its part before the victim goes on.
    Release,
}

impl Marker {
    const fn signal(self) -> c_int {
        match self {
            Self::Edge => libc::SIGUSR1,
            Self::Release => libc::SIGUSR2,
        }
    }

    /// Called in the victim.
    pub(crate) fn raise(self) {
        // One system call and nothing else: the instructions around it are stepped too.
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        // SAFETY: the signal goes to this thread; its tracer takes it.
        unsafe { libc::syscall(libc::SYS_tkill, thread, self.signal()) };
    }
}

/// A victim, stopped between two instructions. Dropped, it is killed, and nothing of it runs any more.
#[derive(Debug)]
pub(crate) struct Victim {
    pid: pid_t,
}

impl Victim {
    /// Forks. The child runs `body`, which must not return to the caller's world: it ends the process. The victim is
    /// stopped before the first instruction of it. This process must have one thread.
    pub(crate) fn fork(body: impl FnOnce()) -> Result<Self> {
        // SAFETY: this process has one thread, so the child's memory is consistent.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            child(body);
        }
        ensure!(pid > 0, "fork: {}", io::Error::last_os_error());
        let victim = Self { pid };
        match victim.wait()? {
            Stop::Signal(libc::SIGSTOP) => {}
            other => bail!("a victim did not start: {other:?}"),
        }
        victim.request(libc::PTRACE_SETOPTIONS, libc::PTRACE_O_EXITKILL.into())?;
        Ok(victim)
    }

    /// Lets it run until something happens.
    pub(crate) fn run(&self) -> Result<Stop> {
        self.request(libc::PTRACE_CONT, 0)?;
        self.wait()
    }

    /// Lets it execute one instruction.
    pub(crate) fn step(&self) -> Result<Stop> {
        self.request(libc::PTRACE_SINGLESTEP, 0)?;
        self.wait()
    }

    /// Stops it before it executes the instruction at an address; `None`: no more. By a debug register of the processor, so
    /// that not a byte of the program is changed.
    pub(crate) fn stop_at(&self, address: Option<u64>) -> Result<()> {
        const ENABLE: i64 = 1;
        if let Some(address) = address {
            self.debug_register(0, address.cast_signed())?;
        }
        self.debug_register(7, if address.is_some() { ENABLE } else { 0 })
    }

    fn debug_register(&self, number: usize, value: i64) -> Result<()> {
        let offset = std::mem::offset_of!(libc::user, u_debugreg) + number * 8;
        // SAFETY: the request takes an offset and a value; the process is stopped.
        let done = unsafe { libc::ptrace(libc::PTRACE_POKEUSER, self.pid, offset, value) };
        ensure!(
            done == 0,
            "debug register {number}: {}",
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// Waits for the next stop. [`Stop::Asleep`] is only noticed while a timer of this process runs (see [`Ticks`]).
    pub(crate) fn wait(&self) -> Result<Stop> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is a place for the status.
            let found = unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) };
            if found == self.pid {
                break;
            }
            let error = io::Error::last_os_error();
            ensure!(
                error.kind() == io::ErrorKind::Interrupted,
                "waitpid: {error}"
            );
            if self.is_asleep() {
                return Ok(Stop::Asleep);
            }
        }
        if !libc::WIFSTOPPED(status) {
            return Ok(Stop::Ended(status));
        }
        let edge = Marker::Edge.signal();
        let release = Marker::Release.signal();
        Ok(match libc::WSTOPSIG(status) {
            libc::SIGTRAP => {
                if status >> 8 == libc::SIGTRAP | (libc::PTRACE_EVENT_EXEC << 8) {
                    Stop::Exec
                } else {
                    Stop::Step
                }
            }
            signal if signal == edge => Stop::Marker(Marker::Edge),
            signal if signal == release => Stop::Marker(Marker::Release),
            signal => Stop::Signal(signal),
        })
    }

    /// The address of the next instruction.
    pub(crate) fn address(&self) -> Result<u64> {
        Ok(self.registers()?.rip)
    }

    /// Makes it execute `program` in place of what it was doing; returns when it is that program. `program` lives at the
    /// same address in the victim, which was forked from here.
    pub(crate) fn exec(&self, program: &'static CStr) -> Result<()> {
        self.request(libc::PTRACE_SETOPTIONS, EXEC_OPTIONS)?;
        let mut registers = self.registers()?;
        let function: extern "C" fn(*const libc::c_char) -> ! = become_other;
        registers.rip = function as usize as u64;
        registers.rdi = program.as_ptr() as u64;
        // Below the red zone, and as misaligned as a call leaves it.
        registers.rsp = ((registers.rsp - 512) & !15) - 8;
        // A system call that was interrupted is not to be started again.
        registers.orig_rax = u64::MAX;
        let pointer = (&raw mut registers).cast::<c_void>();
        // SAFETY: the structure is what the kernel expects for this request; the process is stopped.
        let done = unsafe {
            libc::ptrace(
                libc::PTRACE_SETREGS,
                self.pid,
                ptr::null_mut::<c_void>(),
                pointer,
            )
        };
        ensure!(done == 0, "PTRACE_SETREGS: {}", io::Error::last_os_error());
        loop {
            match self.run()? {
                Stop::Exec => return Ok(()),
                // It had just raised one.
                Stop::Marker(_) | Stop::Signal(_) => {}
                other => bail!("the victim did not become another program: {other:?}"),
            }
        }
    }

    fn registers(&self) -> Result<libc::user_regs_struct> {
        // SAFETY: all-zero registers are valid numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let pointer = (&raw mut registers).cast::<c_void>();
        // SAFETY: the structure is what the kernel expects for this request; the process is stopped.
        let done = unsafe {
            libc::ptrace(
                libc::PTRACE_GETREGS,
                self.pid,
                ptr::null_mut::<c_void>(),
                pointer,
            )
        };
        ensure!(done == 0, "PTRACE_GETREGS: {}", io::Error::last_os_error());
        Ok(registers)
    }

    fn request(&self, request: libc::c_uint, data: i64) -> Result<()> {
        // SAFETY: requests without pointers, on a process that is stopped.
        let done = unsafe { libc::ptrace(request, self.pid, ptr::null_mut::<c_void>(), data) };
        ensure!(
            done == 0,
            "ptrace {request}: {}",
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// Whether it sleeps, as opposed to being stopped for us or running.
    fn is_asleep(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('S'))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // SAFETY: the process is our child and not waited for, so the number is its.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // It fails only when the victim had ended and was waited for before.
        while let Ok(stop) = self.wait() {
            if matches!(stop, Stop::Ended(_)) {
                return;
            }
        }
    }
}

const EXEC_OPTIONS: i64 = (libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACEEXEC) as i64;

/// Runs in a victim that is to become another program: that one waits until it is killed.
extern "C" fn become_other(program: *const libc::c_char) -> ! {
    let argument = c"--wait-to-be-killed";
    let arguments = [program, argument.as_ptr(), ptr::null()];
    // SAFETY: both lists end with a null pointer, and the strings live for ever.
    unsafe { libc::execv(program, arguments.as_ptr()) };
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(97) }
}

fn child(body: impl FnOnce()) -> ! {
    // SAFETY: a plain request about this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: as above.
    let asked = unsafe { libc::ptrace(libc::PTRACE_TRACEME) };
    if asked == 0 {
        // SAFETY: stops this process for its tracer.
        unsafe { libc::raise(libc::SIGSTOP) };
        // The frames above belong to the supervisor: a panic ends here.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
    }
    // SAFETY: ends the process without running what the parent registered for its own end.
    unsafe { libc::_exit(i32::from(asked != 0)) }
}

/// Microseconds between two ticks.
pub(crate) const TICK: i64 = 2_000;

/// A timer that interrupts [`Victim::wait`] at times, so that it notices a victim that has gone to sleep.
#[derive(Debug)]
pub(crate) struct Ticks;

impl Ticks {
    /// One tick every so many microseconds, until dropped.
    pub(crate) fn every(microseconds: i64) -> Result<Self> {
        // SAFETY: all-zero is a valid action: no flags, so waits are interrupted.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = (tick as extern "C" fn(c_int)) as usize;
        // SAFETY: the handler does nothing, so it may run at any time.
        let done = unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) };
        ensure!(done == 0, "sigaction: {}", io::Error::last_os_error());
        set_timer(microseconds).context("setitimer")?;
        Ok(Self)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        // It cannot fail with these values.
        let _ = set_timer(0);
    }
}

extern "C" fn tick(_: c_int) {
    crate::watchdog::tick();
}

fn set_timer(microseconds: i64) -> io::Result<()> {
    let interval = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: interval,
        it_value: interval,
    };
    // SAFETY: the structure is valid, and the old one is not wanted.
    match unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
