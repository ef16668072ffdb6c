//! What the tests of the client share: C programs, and the smallest thing that a client takes for a daemon.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test program uses its part of it"
)]

use std::env;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use dragon_channels::recover;
use dragon_protocol::attach::{
    AttachHello, AttachReply, Attached, REPLY_MAGIC, Region, RegionKind, release_bytes,
};
use dragon_protocol::control::{ClientReply, ClientRequest, Membership, Numbered, PoolGiven};
use dragon_protocol::launch::NodeInfo;
use dragon_protocol::{Code, NodeIndex, ObjectId, PROTOCOL_VERSION, RuntimeId, SlotId, frame};
use dragon_shmem::pool::table::{InProcess, PoolTable, Unlimited};
use dragon_shmem::{Control, Member, Pool, PoolTag};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::IntoBytes;

pub fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The shared library that cargo built together with this test.
pub fn library() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().unwrap().join("libdragon.so")
}

pub fn run(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    command
        .output()
        .unwrap_or_else(|error| panic!("{shown}: {error}"))
}

/// Standard output of a command that must succeed.
pub fn stdout(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = run(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{shown}: {}\n{errors}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Compiles a C program against header and library; returns where it is.
pub fn compile(dir: &Path, source: &Path) -> PathBuf {
    let program = dir.join("program");
    // Programs ask for the library by its SONAME.
    std::os::unix::fs::symlink(library(), dir.join("libdragon.so.1")).unwrap();
    let mut cc = Command::new("cc");
    cc.args([
        "-std=gnu11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        "-O1",
        "-o",
    ])
    .arg(&program)
    .arg(source)
    .arg(format!("-I{}", crate_dir().join("c").display()))
    .arg(library())
    .arg("-pthread")
    .arg(format!("-Wl,-rpath,{}", dir.display()));
    stdout(&mut cc);
    program
}

/// A runtime of one node without agent and processes: attach, memory, nodes.
pub struct SmallRuntime {
    name: String,
    node: Arc<Node>,
}

struct Node {
    member: Arc<Member>,
    pools: Arc<PoolTable>,
    clients: Mutex<Vec<UnixStream>>,
    /// Processes that are attached, or not yet recovered.
    present: Mutex<usize>,
    fewer: Condvar,
    /// A daemon that was killed recovers nobody.
    gone: AtomicBool,
}

const RUNTIME: RuntimeId = RuntimeId(0x00c0_ffee);

impl SmallRuntime {
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dragon-small-runtime/{}/{count}", std::process::id());
        let control = Control::create(RUNTIME, NodeIndex::FIRST, 2).unwrap();
        let pool = Pool::create(RUNTIME, NodeIndex::FIRST, 0, 64 << 20).unwrap();
        let slot = control.claim_daemon_slot().unwrap();
        let pools = PoolTable::new(pool.clone(), Box::new(Unlimited));
        let hooks = Box::new(InProcess(Arc::clone(&pools)));
        let member = Member::new(control, pool, slot, hooks).unwrap();
        pools.set_owner(&member);
        let node = Arc::new(Node {
            member,
            pools,
            clients: Mutex::default(),
            present: Mutex::new(0),
            fewer: Condvar::new(),
            gone: AtomicBool::new(false),
        });
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let serving = Arc::clone(&node);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, node) = (client.unwrap(), Arc::clone(&serving));
                node.clients
                    .lock()
                    .unwrap()
                    .push(client.try_clone().unwrap());
                *node.present.lock().unwrap() += 1;
                thread::spawn(move || {
                    node.serve(client);
                    *node.present.lock().unwrap() -= 1;
                    node.fewer.notify_all();
                });
            }
        });
        Self { name, node }
    }

    /// A command whose process belongs to this runtime.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("DRAGON_RUNTIME", &self.name);
        command
    }

    /// As if the daemon had been killed.
    pub fn hang_up(&self) {
        self.node.gone.store(true, Ordering::Relaxed);
        for client in self.node.clients.lock().unwrap().iter() {
            // Clients that have gone are not connected any more.
            let _ = client.shutdown(Shutdown::Both);
        }
    }

    /// Waits until everything is done about all processes, which must have ended.
    fn settle(&self) {
        let present = self.node.present.lock().unwrap();
        drop(self.node.fewer.wait_while(present, |present| *present != 0));
    }

    /// Pools beside the default one that the processes have left.
    pub fn pools(&self) -> usize {
        self.settle();
        self.node.pools.all().len() - 1
    }

    /// Blocks of the pool that the processes have left in use.
    pub fn blocks(&self) -> u64 {
        self.settle();
        self.node.member.pool().stats().unwrap().blocks
    }
}

impl Node {
    fn serve(&self, mut client: UnixStream) {
        let mut hello = [0; size_of::<AttachHello>()];
        if client.read_exact(&mut hello).is_err() {
            return;
        }
        let slot = self.member.control().claim_slot(1).unwrap();
        self.admit(&client, slot);
        while let Some((number, request)) = read(&mut client) {
            let pool = self.pool_for(slot, &request);
            let answer = match &pool {
                Some(Ok((pool, object))) => ClientReply::Pool(PoolGiven {
                    object: *object,
                    tag: pool.tag().to_u16(),
                    meta: pool.meta().size(),
                    data: pool.data().size(),
                    file: false,
                }),
                Some(Err(error)) => ClientReply::Failed(error.code(), error.to_string()),
                None => self.answer(request),
            };
            let mut bytes = Vec::new();
            frame::encode(&(number, answer), &mut bytes).unwrap();
            if let Some(Ok((pool, _))) = &pool {
                let fds = [pool.meta(), pool.data()].map(|region| region.fd().unwrap());
                send(client.as_fd(), &bytes, &fds);
            } else if client.write_all(&bytes).is_err() {
                break;
            }
        }
        if self.gone.load(Ordering::Relaxed) {
            return;
        }
        recover(&self.member, slot).unwrap();
        self.pools.slot_gone(slot);
    }

    fn admit(&self, client: &UnixStream, slot: SlotId) {
        let (control, pool) = (self.member.control().region(), self.member.pool());
        let region = |kind, region: &dragon_shmem::Region| Region {
            kind,
            size: region.size(),
        };
        let attached = Attached {
            runtime: RUNTIME,
            node: NodeIndex::FIRST,
            slot: Some(slot),
            regions: vec![
                region(RegionKind::Control, control),
                region(RegionKind::PoolMeta { pool: 0 }, pool.meta()),
                region(RegionKind::PoolData { pool: 0 }, pool.data()),
            ],
        };
        let fds = [control, pool.meta(), pool.data()].map(|region| region.fd().unwrap());
        let mut body = Vec::new();
        frame::encode(&attached, &mut body).unwrap();
        let body = &body[4..];
        let head = AttachReply {
            magic: REPLY_MAGIC,
            protocol: PROTOCOL_VERSION.into(),
            descriptors: 3.into(),
            release: release_bytes(),
            status: 0.into(),
            body: u32::try_from(body.len()).unwrap().into(),
        };
        send(client.as_fd(), &[head.as_bytes(), body].concat(), &fds);
    }

    /// The pool that a request asks for.
    fn pool_for(
        &self,
        slot: SlotId,
        request: &ClientRequest,
    ) -> Option<dragon_shmem::Result<(Pool, ObjectId)>> {
        match request {
            ClientRequest::CreatePool(options) => Some(self.pools.create(options, slot)),
            ClientRequest::MapPool { tag } => {
                let tag = PoolTag::from_u16(*tag).unwrap_or_default();
                Some(self.pools.find(tag))
            }
            _ => None,
        }
    }

    fn answer(&self, request: ClientRequest) -> ClientReply {
        match request {
            ClientRequest::Commit { pool, bytes } => match self.pools.commit(pool, bytes) {
                Ok(()) => ClientReply::Done,
                Err(error) => ClientReply::Failed(error.code(), error.to_string()),
            },
            ClientRequest::PoolReleased(object) => {
                self.pools.released(object);
                ClientReply::Done
            }
            ClientRequest::TrimPools => ClientReply::Trimmed(self.pools.trim().unwrap()),
            ClientRequest::Nodes => ClientReply::Nodes(Membership {
                runtime: RUNTIME,
                global_services: NodeIndex::FIRST,
                nodes: vec![NodeInfo {
                    node: NodeIndex::FIRST,
                    host: "small".to_owned(),
                    address: "127.0.0.1".to_owned(),
                    control_port: 0,
                    data_port: 0,
                    data: Vec::new(),
                    cpus: 2,
                    memory: 1 << 30,
                    pid: std::process::id(),
                }],
            }),
            ClientRequest::Stats => ClientReply::Stats(vec![("attached".to_owned(), 1)]),
            other => ClientReply::Failed(Code::Unsupported, format!("{other:?}")),
        }
    }
}

fn read(client: &mut UnixStream) -> Option<Numbered<ClientRequest>> {
    let mut head = [0; 4];
    client.read_exact(&mut head).ok()?;
    let mut body = vec![0; frame::body_length(head).ok()?];
    client.read_exact(&mut body).ok()?;
    frame::decode(&body).ok()
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let parts = [IoSlice::new(bytes)];
    // The process may have been killed meanwhile.
    let _ = rustix::net::sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL);
}
