//! The memory of a node: its pools, and who decides how much they may take.
//!
//! The kernel would not refuse memory beyond the job's limit, it would kill. So before each commit the daemon reads its own
//! chain of control groups and refuses what does not fit: the one who asked gets an error that names the limit.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use dragon_protocol::control::{ClientReply, ClientRequest, PoolGiven};
use dragon_protocol::{Code, ObjectId, PoolOptions, SlotId};
use dragon_shmem::pool::table::{Budget, PoolTable};
use dragon_shmem::region::Backing;
use dragon_shmem::sync::Ordering;
use dragon_shmem::{Control, Error, Member, Pool, PoolTag};

use crate::resources::{self, Limit};

/// Left to the daemons and to memory that programs do not get from pools; of small groups an eighth.
const RESERVE: u64 = 32 << 20;
/// What is committed in the daemon's own loop; more takes so long that others would notice.
const AT_ONCE: u64 = 16 << 20;

/// The memory of a node.
#[derive(Clone, Debug)]
pub struct Memory {
    control: Control,
    pools: Arc<PoolTable>,
}

impl Memory {
    /// The memory of a node with this default pool.
    #[must_use]
    pub fn new(control: Control, default: Pool) -> Self {
        Self {
            control,
            pools: PoolTable::new(default, Box::new(ControlGroups)),
        }
    }

    /// The daemon owns the pools, once it is a member.
    pub fn set_owner(&self, owner: &Arc<Member>) {
        self.pools.set_owner(owner);
    }

    /// The pools.
    #[must_use]
    pub fn pools(&self) -> &Arc<PoolTable> {
        &self.pools
    }

    /// Whether a request takes so long that others are to go on meanwhile.
    #[must_use]
    pub fn takes_long(request: &ClientRequest) -> bool {
        match request {
            ClientRequest::Commit { bytes, .. } => *bytes > AT_ONCE,
            ClientRequest::CreatePool(options) => options.pre_touch,
            ClientRequest::TrimPools => true,
            _ => false,
        }
    }

    /// Answers what a client asks of the node's memory, with the descriptors of regions; gives other requests back.
    ///
    /// # Errors
    /// The request, when it is about something else.
    pub async fn answer(
        &self,
        slot: Option<SlotId>,
        request: ClientRequest,
    ) -> Result<(ClientReply, Vec<OwnedFd>), ClientRequest> {
        if !matches!(
            request,
            ClientRequest::Commit { .. }
                | ClientRequest::CreatePool(_)
                | ClientRequest::MapPool { .. }
                | ClientRequest::PoolReleased(_)
                | ClientRequest::TrimPools
        ) {
            return Err(request);
        }
        let counters = &self.control.words().counters;
        counters.control_requests.fetch_add(1, Ordering::Relaxed);
        let Some(slot) = slot else {
            let text = "only an attached process can ask for memory".to_owned();
            return Ok((ClientReply::Failed(Code::Refused, text), Vec::new()));
        };
        let answer = if Self::takes_long(&request) {
            let this = self.clone();
            let task = tokio::task::spawn_blocking(move || this.do_it(slot, request));
            task.await.unwrap_or_else(|error| {
                let text = format!("the request failed: {error}; please report it");
                Err((Code::Internal, text))
            })
        } else {
            self.do_it(slot, request)
        };
        Ok(answer.unwrap_or_else(|(code, text)| (ClientReply::Failed(code, text), Vec::new())))
    }

    fn do_it(
        &self,
        slot: SlotId,
        request: ClientRequest,
    ) -> Result<(ClientReply, Vec<OwnedFd>), (Code, String)> {
        let failed = |error: Error| (error.code(), error.to_string());
        match request {
            ClientRequest::Commit { pool, bytes } => {
                self.pools.commit(pool, bytes).map_err(failed)?;
                Ok((ClientReply::Done, Vec::new()))
            }
            ClientRequest::CreatePool(options) => {
                let made = self.create(&options, slot).map_err(failed)?;
                given(made)
            }
            ClientRequest::MapPool { tag } => {
                let tag = PoolTag::from_u16(tag).ok_or_else(|| {
                    let text = format!("there is no pool with the tag {tag:#x} on this node");
                    (Code::NoSuchObject, text)
                })?;
                given(self.pools.find(tag).map_err(failed)?)
            }
            ClientRequest::PoolReleased(object) => {
                self.pools.released(object);
                Ok((ClientReply::Done, Vec::new()))
            }
            ClientRequest::TrimPools => {
                let bytes = self.pools.trim().map_err(failed)?;
                Ok((ClientReply::Trimmed(bytes), Vec::new()))
            }
            _ => Err((Code::Internal, "not a request for memory".to_owned())),
        }
    }

    fn create(&self, options: &PoolOptions, slot: SlotId) -> Result<(Pool, ObjectId), Error> {
        let made = self.pools.create(options, slot);
        if let Ok((pool, object)) = &made {
            tracing::debug!("pool {} is {object}", pool.label());
        }
        made
    }
}

/// What a process gets of a pool.
fn given((pool, object): (Pool, ObjectId)) -> Result<(ClientReply, Vec<OwnedFd>), (Code, String)> {
    let (meta, data) = (pool.meta(), pool.data());
    let reply = PoolGiven {
        object,
        tag: pool.tag().to_u16(),
        meta: meta.size(),
        data: data.size(),
        file: data.backing() == Backing::File,
    };
    let descriptor = |region: &dragon_shmem::Region| {
        let fd = region.fd().map_err(|error| error.to_string())?;
        fd.try_clone_to_owned().map_err(|error| error.to_string())
    };
    let descriptors = [meta, data]
        .into_iter()
        .map(descriptor)
        .collect::<Result<_, String>>();
    let descriptors = descriptors.map_err(|text| (Code::System, text))?;
    Ok((ClientReply::Pool(reply), descriptors))
}

/// The limits of the control groups above this process.
#[derive(Clone, Copy, Debug)]
struct ControlGroups;

impl Budget for ControlGroups {
    fn allow(&self, pool: &Pool, bytes: u64) -> Result<(), Error> {
        match resources::tightest() {
            Some(limit) => within(&limit, pool, bytes),
            None => Ok(()),
        }
    }
}

fn within(limit: &Limit, pool: &Pool, bytes: u64) -> Result<(), Error> {
    let reserve = RESERVE.min(limit.bytes / 8);
    let left = limit
        .bytes
        .saturating_sub(limit.used.saturating_add(reserve));
    // What is committed needs metadata, which is charged when it is touched: 4 % at most.
    if bytes.saturating_add(bytes / 24) <= left {
        return Ok(());
    }
    Err(Error::OutOfCgroupMemory(format!(
        "pool {}: {bytes} bytes do not fit: control group {} has a limit of {} bytes, of which {} are used and {reserve} kept for the runtime, so {left} are left; free memory, or ask the workload manager for more",
        pool.label(),
        limit.group.display(),
        limit.bytes,
        limit.used,
    )))
}

/// Why the default pool has the limit that it has, as errors put it behind the limit.
#[must_use]
pub fn why_this_limit(asked: u64, granted: u64) -> String {
    if asked != 0 {
        return " (as --pool says)".to_owned();
    }
    match resources::smallest() {
        Some(limit) if limit.bytes <= granted => format!(
            " (half of the {} bytes that control group {} allows)",
            limit.bytes,
            limit.group.display()
        ),
        _ => format!(" (half of the {granted} bytes of this machine)"),
    }
}
