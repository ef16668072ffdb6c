//! What tests need: a node without a daemon, and further processes on it, which are this test program again with a role.

#![expect(
    clippy::unwrap_used,
    reason = "part of the tests, outside their functions"
)]

use std::env;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use dragon_protocol::{Descriptor, NodeIndex, ObjectId, RuntimeId, SlotId};
use dragon_shmem::{Control, Hooks, Member, Pool};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid,
};

use crate::Recovered;
use crate::channel::TestPoint;

const RUNTIME: RuntimeId = RuntimeId(0xc0ff_ee00);
/// Names the role of a child, and what it needs to find its node.
const ROLE: &str = "DRAGON_CHANNELS_TEST_ROLE";

/// Commits memory directly, and remembers what it was notified of.
struct Direct {
    pool: Pool,
    notified: Arc<Mutex<Vec<ObjectId>>>,
}

impl Hooks for Direct {
    fn commit(&self, _: u32, bytes: u64) -> Result<(), dragon_shmem::Error> {
        self.pool.commit(bytes)
    }

    fn notify(&self, object: ObjectId) {
        self.notified.lock().unwrap().push(object);
    }
}

/// A node of a runtime, whose daemon is the test.
pub(crate) struct Node {
    pub(crate) control: Control,
    pub(crate) pool: Pool,
    pub(crate) daemon: Arc<Member>,
    pub(crate) notified: Arc<Mutex<Vec<ObjectId>>>,
}

impl Node {
    pub(crate) fn new() -> Self {
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap();
        let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, 256 << 20).unwrap();
        let notified = Arc::default();
        let slot = control.claim_daemon_slot().unwrap();
        let daemon = member(&control, &pool, slot, &notified);
        Self {
            control,
            pool,
            daemon,
            notified,
        }
    }

    /// A member with a slot of its own in this process.
    pub(crate) fn member(&self) -> Arc<Member> {
        let slot = self.control.claim_slot(std::process::id()).unwrap();
        member(&self.control, &self.pool, slot, &self.notified)
    }

    /// A process with a slot of its own. It runs `child` with the words.
    pub(crate) fn spawn(&self, role: &str, words: &[String]) -> Process {
        let slot = self.control.claim_slot(0).unwrap();
        let mut text = format!("{role} {} {}", slot.index, slot.generation);
        for region in [self.control.region(), self.pool.meta(), self.pool.data()] {
            // Another test's child may inherit the descriptors too, which harms nobody.
            fcntl_setfd(region.fd().unwrap(), FdFlags::empty()).unwrap();
            text += &format!(" {} {}", region.fd().unwrap().as_raw_fd(), region.size());
        }
        for word in words {
            text += &format!(" {word}");
        }
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "fixture::child", "--nocapture", "--quiet"])
            .env(ROLE, text)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Process { child, slot }
    }

    /// Bytes in allocated blocks.
    pub(crate) fn used(&self) -> u64 {
        self.pool.stats().unwrap().used
    }
}

fn member(
    control: &Control,
    pool: &Pool,
    slot: SlotId,
    notified: &Arc<Mutex<Vec<ObjectId>>>,
) -> Arc<Member> {
    let hooks = Direct {
        pool: pool.clone(),
        notified: Arc::clone(notified),
    };
    Member::new(control.clone(), pool.clone(), slot, Box::new(hooks)).unwrap()
}

/// Lets others work for a while.
pub(crate) fn pause(nanoseconds: u64) {
    let never = dragon_shmem::sync::AtomicU32::new(0);
    let _ = dragon_shmem::futex::wait(&never, 0, crate::Deadline::after(nanoseconds));
}

/// A block full of a pattern, which nobody but its owner has any business to change.
pub(crate) struct Filled {
    member: Arc<Member>,
    block: dragon_shmem::Block,
}

impl Filled {
    pub(crate) fn new(member: &Arc<Member>, length: u64) -> Self {
        let block = member.alloc(length).unwrap();
        let pattern = vec![0xa5; usize::try_from(length).unwrap()];
        member.write(block.offset, 0, &pattern).unwrap();
        Self {
            member: Arc::clone(member),
            block,
        }
    }

    pub(crate) fn is_unchanged(&self) -> bool {
        let mut bytes = vec![0; usize::try_from(self.block.length).unwrap()];
        self.member.read(self.block.offset, 0, &mut bytes).unwrap();
        bytes.iter().all(|byte| *byte == 0xa5)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.member.free(self.block.offset).unwrap();
    }
}

/// A further process of a node.
pub(crate) struct Process {
    child: Child,
    pub(crate) slot: SlotId,
}

impl Process {
    /// Waits until it has stopped itself at a test point.
    pub(crate) fn wait_until_stopped(&self) {
        let (_, status) = waitpid(Some(self.pid()), WaitOptions::UNTRACED)
            .unwrap()
            .unwrap();
        assert!(status.stopped(), "the process ended before its test point");
    }

    /// Kills it, and recovers what it had.
    pub(crate) fn kill(mut self, node: &Node) -> Recovered {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        // It may have ended before, but not by a failure of its own.
        assert!(
            status.code().is_none_or(|code| code == 0),
            "a child failed: {status}"
        );
        crate::recover(&node.daemon, self.slot).unwrap()
    }

    /// Waits for its end, and recovers what it had.
    pub(crate) fn join(mut self, node: &Node) -> Recovered {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "a child failed: {status}");
        crate::recover(&node.daemon, self.slot).unwrap()
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

/// What a child process sees.
pub(crate) struct Role {
    pub(crate) member: Arc<Member>,
    words: Vec<String>,
}

impl Role {
    pub(crate) fn descriptor(&self, n: usize) -> Descriptor {
        self.words[n].parse().unwrap()
    }

    pub(crate) fn number(&self, n: usize) -> u64 {
        self.words[n].parse().unwrap()
    }
}

/// The body of child processes; without a role it is a test that does nothing.
#[test]
fn child() {
    let Ok(text) = env::var(ROLE) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
    let number = |n: usize| words[n].parse::<u64>().unwrap();
    let fd = |n: usize| {
        // SAFETY: the parent left this descriptor to us, and nothing else in this process uses it.
        let fd = unsafe { OwnedFd::from_raw_fd(RawFd::try_from(number(n)).unwrap()) };
        (fd, number(n + 1))
    };
    let (region, size) = fd(3);
    let control = Control::map(region, size, RUNTIME).unwrap();
    let pool = Pool::map(RUNTIME, 0, fd(5), fd(7)).unwrap();
    let slot = SlotId {
        index: words[1].parse().unwrap(),
        generation: words[2].parse().unwrap(),
    };
    let role = Role {
        member: member(&control, &pool, slot, &Arc::default()),
        words: words[9..].to_vec(),
    };
    crate::tests::play(&words[0], &role);
}

static STOP_AT: AtomicU32 = AtomicU32::new(u32::MAX);
static STOP_AFTER: AtomicU32 = AtomicU32::new(0);

/// This process stops itself the next time but `after` that it comes to a point.
pub(crate) fn stop_at(point: TestPoint, after: u32) {
    STOP_AFTER.store(after, Ordering::Relaxed);
    STOP_AT.store(point as u32, Ordering::Release);
}

pub(crate) fn test_point(point: TestPoint) {
    if STOP_AT.load(Ordering::Acquire) == point as u32
        && STOP_AFTER.fetch_sub(1, Ordering::Relaxed) == 0
    {
        kill_process(rustix::process::getpid(), Signal::STOP).unwrap();
        // The signal may first meet another thread; this one must not go on meanwhile. It is killed here.
        loop {
            std::thread::park();
        }
    }
}
