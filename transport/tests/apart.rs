//! The daemon's control thread and the agent's own threads: what the daemon tells its agent never waits for those.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dragon_channels::remote::GATEWAY_CAPACITY;
use rig::{channel, index, info, seen_by, tcp, until, watched};

/// Threads that got the signal stay in its handler.
static STOPPED: AtomicBool = AtomicBool::new(false);
/// How many are there.
static INSIDE: AtomicU64 = AtomicU64::new(0);

extern "C" fn stop(_: libc::c_int) {
    INSIDE.fetch_add(1, Ordering::AcqRel);
    while STOPPED.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    INSIDE.fetch_sub(1, Ordering::AcqRel);
}

/// The threads of all agents of this process.
fn threads_of_agents() -> Vec<libc::pid_t> {
    let all = std::fs::read_dir("/proc/self/task").unwrap();
    let of_agents = all.map(Result::unwrap).filter(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
        ["dragon-gateway\n", "dragon-io\n"].contains(&name.as_str())
    });
    let numbers = of_agents.map(|thread| thread.file_name().to_str().unwrap().parse().unwrap());
    numbers.collect()
}

/// Whether a thread sleeps in a wait of the kernel: it holds no lock then.
fn sleeps(thread: libc::pid_t) -> bool {
    let path = format!("/proc/self/task/{thread}/stat");
    let stat = std::fs::read_to_string(path).unwrap();
    stat.rsplit(')').next().unwrap().trim().starts_with('S')
}

#[test]
fn what_the_daemon_tells_its_agent_never_waits_for_the_agents_threads() {
    let nodes = tcp(&[16 << 20; 2]);
    let (near, far) = (nodes[0].client(), nodes[1].client());
    let owned = channel(&far, 4);
    let remote = seen_by(&near, owned.descriptor());
    remote.send(b"before", 0, watched()).unwrap();
    owned.receive(watched()).unwrap();
    let gone = nodes[0].client().slot();

    // SAFETY: an action without flags, whose handler touches nothing but atomics.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = stop as *const () as usize;
    // SAFETY: the action is complete, and the old one is of no interest.
    let done = unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, core::ptr::null_mut()) };
    assert_eq!(done, 0);
    let threads = threads_of_agents();
    assert_eq!(threads.len(), 4);
    until("they are idle", || threads.iter().all(|t| sleeps(*t)));
    STOPPED.store(true, Ordering::Release);
    let process = std::process::id();
    for thread in &threads {
        // SAFETY: no memory is involved.
        let done = unsafe { libc::syscall(libc::SYS_tgkill, process, *thread, libc::SIGUSR2) };
        assert_eq!(done, 0);
    }
    until("they are stopped", || {
        INSIDE.load(Ordering::Acquire) == threads.len() as u64
    });
    // More than the gateway has room for, to a node and to this one, and all else that a daemon says.
    let posts = u64::from(GATEWAY_CAPACITY) * 4;
    let here = channel(&near, 1);
    let agent = &nodes[0].agent;
    for hint in 0..posts {
        agent.post(owned.id(), hint, vec![1; 100]);
        agent.post(here.id(), hint, vec![1; 100]);
        agent.notify(here.id());
    }
    agent.set_peers(&[info(
        index(1),
        nodes[1].agent.local_address().unwrap().port(),
    )]);
    nodes[0].dies(gone);
    agent.node_down(index(7));
    let stats = agent.stats();
    assert_eq!((stats.messages_sent, agent.peers().len()), (1, 1));
    assert_eq!(INSIDE.load(Ordering::Acquire), threads.len() as u64);

    STOPPED.store(false, Ordering::Release);
    // And it does all of it in its order, when it can.
    for hint in 0..posts {
        for channel in [&owned, &here] {
            assert_eq!(channel.receive(watched()).unwrap().hint(), hint);
        }
    }
}
