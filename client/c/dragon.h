/* dragon.h: the C interface of libdragon.so.1.
 *
 * A process becomes part of a runtime at its first call that needs one; dragon_attach() only does it at a time of the
 * caller's choice. The runtime is the one that the environment variable DRAGON_RUNTIME names; where there is none, one of
 * a single node is started, which is gone when the process has ended.
 *
 * Every function that can fail returns a dragon_code: 0 when it succeeded. dragon_last_error() then tells, for the
 * calling thread, which values and limits were involved and what to do.
 *
 * Timeouts are nanoseconds: DRAGON_NEVER (-1) waits for ever, DRAGON_TRY (0) does not wait. A wait that a signal handler
 * interrupts returns DRAGON_INTERRUPTED and has had no effect: call again to go on waiting. When the time is over the code
 * is DRAGON_TIMEOUT; with DRAGON_TRY it is DRAGON_FULL for a send and DRAGON_EMPTY for everything else.
 *
 * Handles may be used by several threads at once; close each exactly once, when no thread uses it any more. In a child
 * made by fork() a handle of the parent works too: the child attaches on its own at its first use of it.
 *
 * Structures, numbers and functions below are only ever added to, within one SONAME.
 */
#ifndef DRAGON_H
#define DRAGON_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DRAGON_NEVER ((int64_t)-1)
#define DRAGON_TRY ((int64_t)0)
/* Bytes of a descriptor, and of the longest text form with its final NUL. */
#define DRAGON_DESCRIPTOR_BYTES 32
#define DRAGON_DESCRIPTOR_TEXT 96

/* How a call ended. Numbers are never used again for another meaning; a later release may add some. */
typedef enum dragon_code {
    DRAGON_OK = 0,
    DRAGON_TIMEOUT = 1,              /* the deadline passed first */
    DRAGON_EMPTY = 2,                /* try form: nothing to receive, or not ready */
    DRAGON_FULL = 3,                 /* try form: no room to send */
    DRAGON_DESTROYED = 4,            /* the object was destroyed */
    DRAGON_NO_SUCH_OBJECT = 5,       /* never created, or gone */
    DRAGON_WRONG_KIND = 6,           /* the object is of another kind */
    DRAGON_OUT_OF_MEMORY = 7,        /* the pool is used up */
    DRAGON_OUT_OF_CGROUP_MEMORY = 8, /* the job's memory limit leaves no room */
    DRAGON_TABLE_FULL = 9,           /* a table of fixed size is full */
    DRAGON_INVALID_ARGUMENT = 10,    /* a value is out of its range */
    DRAGON_OWNER_DIED = 11,          /* reserved: dragon_lock_acquire tells it by its argument */
    DRAGON_NOT_OWNER = 12,           /* the caller does not hold the lock */
    DRAGON_NODE_DOWN = 13,           /* the node that owns the object is down */
    DRAGON_UNREACHABLE = 14,         /* the node exists but cannot be reached */
    DRAGON_RUNTIME_GONE = 15,        /* the runtime has ended or is ending */
    DRAGON_NO_RUNTIME = 16,          /* there is no runtime, and none can be started */
    DRAGON_VERSION_MISMATCH = 17,    /* daemon and library are of different releases */
    DRAGON_REFUSED = 18,             /* refused by the daemon */
    DRAGON_SPAWN_FAILED = 19,        /* a program could not be started */
    DRAGON_CORRUPT = 20,             /* shared memory holds what no correct process writes */
    DRAGON_TOO_LARGE = 21,           /* more than the limit or the buffer holds */
    DRAGON_SYSTEM = 22,              /* the operating system refused a call */
    DRAGON_CANCELLED = 23,           /* the operation was cancelled */
    DRAGON_UNSUPPORTED = 24,         /* this release does not do that yet */
    DRAGON_INTERRUPTED = 25,         /* a signal interrupted the wait; nothing happened */
    DRAGON_BROKEN = 26,              /* the barrier is broken */
    DRAGON_END_OF_STREAM = 27,       /* the stream has ended: its sender closed it */
    DRAGON_PEER_DIED = 28,           /* the process at the other end died */
    DRAGON_INTERNAL = 29,            /* a defect of this library: please report it */
    DRAGON_PEER_CLOSED = 30,         /* the other end of the stream was closed */
    DRAGON_NAME_TAKEN = 31,          /* the name stands for something already */
    DRAGON_NO_SUCH_NAME = 32,        /* the name stands for nothing, or the key has no value */
    DRAGON_CHANGED = 33              /* the value is not the expected one */
} dragon_code;

typedef struct dragon_channel dragon_channel;
typedef struct dragon_lock dragon_lock;
typedef struct dragon_event dragon_event;
typedef struct dragon_semaphore dragon_semaphore;
typedef struct dragon_barrier dragon_barrier;
typedef struct dragon_condition dragon_condition;
typedef struct dragon_broadcast dragon_broadcast;
typedef struct dragon_priority_queue dragon_priority_queue;
typedef struct dragon_process dragon_process;
typedef struct dragon_set dragon_set;
typedef struct dragon_endpoint dragon_endpoint;
typedef struct dragon_stream_sender dragon_stream_sender;
typedef struct dragon_stream_receiver dragon_stream_receiver;
typedef struct dragon_pump dragon_pump;
typedef struct dragon_pool dragon_pool;
typedef struct dragon_memory dragon_memory;
typedef struct dragon_pool_block dragon_pool_block;

/* How the waits of a handle wait for an object of this node; a wait for another node sleeps. */
typedef enum dragon_wait_mode {
    DRAGON_WAIT_ADAPTIVE = 0, /* spin as long as that has paid lately, then sleep: what a new handle does */
    DRAGON_WAIT_SPIN = 1,     /* never sleep: the shortest time to an answer, at the price of a CPU. A signal handler does
                               * not end such a wait */
    DRAGON_WAIT_SLEEP = 2     /* sleep at once: a wait costs a system call and nothing else */
} dragon_wait_mode;

/* Called in the middle of a wait, after a signal's handler. 0: the wait goes on; else it ends with DRAGON_INTERRUPTED. */
typedef int32_t (*dragon_on_signal)(void *context);

/* Why a barrier is broken. A later release may add some. */
typedef enum dragon_breakage {
    DRAGON_WHOLE = 0,             /* it is not */
    DRAGON_BROKEN_BY_TIMEOUT = 1, /* the time of a party was up */
    DRAGON_BROKEN_BY_ABORT = 2,   /* dragon_barrier_abort */
    DRAGON_BROKEN_BY_DEATH = 3,   /* a party died while it waited */
    DRAGON_BROKEN_BY_RESET = 4,   /* dragon_barrier_reset while parties waited */
    DRAGON_BROKEN_UNKNOWN = 5     /* for a reason that this release does not know */
} dragon_breakage;

/* How many to wake: all who wait. */
#define DRAGON_ALL UINT32_MAX

/* Bytes of the caller. The same layout as struct iovec. */
typedef struct dragon_bytes {
    const void *data;
    size_t length;
} dragon_bytes;

/* A received message. data stays valid until dragon_message_release. */
typedef struct dragon_message {
    const void *data;
    size_t length;
    uint64_t hint;
    void *private_words[8];
} dragon_message;

/* The runtime, and this process's place in it. */
typedef struct dragon_runtime {
    uint64_t runtime;         /* the runtime's id */
    uint32_t node;            /* this process's node, counted from 0 */
    uint32_t nodes;           /* how many nodes */
    uint32_t cpus;            /* CPUs granted, on all nodes together */
    uint32_t global_services; /* the node that runs global services */
    uint32_t slot;            /* this process's slot on its node */
    uint32_t slot_generation;
} dragon_runtime;

/* A node of the runtime. */
typedef struct dragon_node {
    uint32_t node;
    uint32_t cpus;    /* granted to the job */
    uint64_t memory;  /* bytes granted to the job */
    uint32_t pid;     /* of its daemon, on that node */
    char host[260];   /* NUL-terminated, cut when longer */
    char address[64]; /* NUL-terminated */
} dragon_node;

/* A counter of this node's daemon. */
typedef struct dragon_stat {
    char name[56]; /* NUL-terminated, cut when longer */
    uint64_t value;
} dragon_stat;

/* What one waits for in a set, and what was found. */
#define DRAGON_READABLE 1u /* a message, a set event, a unit of a semaphore, an ended process, a stream to accept */
#define DRAGON_WRITABLE 2u /* room in a channel, a stream can be opened */
#define DRAGON_GONE 4u     /* the object was destroyed or has gone; always reported */
#define DRAGON_LOST 8u     /* its node is down or cannot be reached: an operation on it says which; always reported */

/* A member of a set that is ready. */
typedef struct dragon_ready {
    uint64_t token;    /* what dragon_set_add was given */
    uint64_t member;   /* for dragon_set_remove */
    uint32_t ready;    /* DRAGON_READABLE | ... */
    uint32_t reserved; /* 0 */
} dragon_ready;

/* How a channel is to be made. Set size to sizeof(dragon_channel_options) and all that is not needed to 0. */
typedef struct dragon_channel_options {
    size_t size;
    uint64_t user;     /* a number of the caller's choice, carried in descriptors */
    uint32_t capacity; /* messages that it holds; of one that grows: that it has room for at first */
    uint32_t block;    /* messages up to so many bytes travel in the channel's own memory, larger ones by reference */
    uint32_t limit;    /* messages that it may grow to, from its pool, when it is full; 0: it does not grow */
    uint32_t reserved; /* 0 */
} dragon_channel_options;

/* When a send returns. */
typedef enum dragon_returns {
    DRAGON_RETURN_DEPOSITED = 0,   /* when the message is in the channel */
    DRAGON_RETURN_IMMEDIATELY = 1, /* at once. To a channel of another node: nobody tells whether the message arrived. To one
                                    * of this node: as DRAGON_RETURN_DEPOSITED */
    DRAGON_RETURN_BUFFERED = 2,    /* when the caller's bytes may be written over; otherwise as DRAGON_RETURN_IMMEDIATELY */
    DRAGON_RETURN_RECEIVED = 3     /* when somebody has received it. DRAGON_TIMEOUT takes nothing back then: once the message
                                    * is in the channel, it stays there. A signal handler does not end the wait for that */
} dragon_returns;

/* How a message is to be sent. Set size to sizeof(dragon_send_options) and all that is not needed to 0. */
typedef struct dragon_send_options {
    size_t size;
    uint64_t hint;        /* for the receiver, beside the bytes */
    const uint8_t *trace; /* a trace id of 16 bytes that travels with the message; NULL: none */
    int32_t returns;      /* a dragon_returns */
    uint32_t reserved;    /* 0 */
} dragon_send_options;

/* What was received into the caller's memory. */
typedef struct dragon_received {
    size_t length;     /* bytes of the message, at the start of the buffer */
    uint64_t hint;
    uint8_t trace[16]; /* the sender's trace id */
    int32_t traced;    /* 1: it gave one */
    uint32_t reserved; /* 0 */
} dragon_received;

/* A state of a channel to wait for. */
typedef enum dragon_poll {
    DRAGON_POLL_READABLE = 0, /* there is a message */
    DRAGON_POLL_WRITABLE = 1, /* there is room for one */
    DRAGON_POLL_EMPTY = 2,    /* there is no message */
    DRAGON_POLL_FULL = 3,     /* there is no room */
    DRAGON_POLL_CLOSED = 4    /* the channel was destroyed */
} dragon_poll;

/* What a channel is and how full. Set size to sizeof(dragon_channel_info) before the call. */
typedef struct dragon_channel_info {
    size_t size;
    uint64_t messages;          /* in it, those just being sent among them */
    uint64_t capacity;          /* messages that it can hold; of one that grows: its limit */
    uint64_t block;             /* messages up to so many bytes travel in the channel's own memory */
    uint64_t bytes;             /* of its own memory; large messages are not among them */
    uint32_t senders_waiting;   /* threads that sleep until there is room */
    uint32_t receivers_waiting; /* threads that sleep until there is a message */
    uint32_t watchers;          /* threads that sleep until it is in another state, or for a receipt */
    uint32_t segments;          /* pieces that it consists of: 1 unless it has grown */
    int32_t grows;              /* 1: it does */
    uint32_t reserved;          /* 0 */
} dragon_channel_info;

/* Most levels of a queue with priorities. */
#define DRAGON_PRIORITY_LEVELS 64

/* How a queue with priorities is to be made. Set size to sizeof(dragon_priority_queue_options) and all that is not needed to 0. */
typedef struct dragon_priority_queue_options {
    size_t size;
    uint64_t user;     /* a number of the caller's choice, carried in descriptors */
    uint32_t levels;   /* 1 to DRAGON_PRIORITY_LEVELS, 0 is the most urgent; 0: 4 levels */
    uint32_t capacity; /* messages that each level holds; 0: 64 */
    uint32_t block;    /* messages up to so many bytes travel in the queue's own memory, larger ones by reference; 0: 168 */
    uint32_t reserved; /* 0 */
} dragon_priority_queue_options;

/* What a queue with priorities is and how full. Set size to sizeof(dragon_priority_queue_info) before the call. */
typedef struct dragon_priority_queue_info {
    size_t size;
    uint64_t capacity;          /* messages that each level can hold */
    uint64_t block;             /* messages up to so many bytes travel in the queue's own memory */
    uint64_t bytes;             /* of its own memory; large messages are not among them */
    uint64_t senders_waiting;   /* threads that sleep until there is room in their level */
    uint64_t receivers_waiting; /* threads that sleep until there is a message */
    uint32_t levels;
    uint32_t reserved;                         /* 0 */
    uint64_t messages[DRAGON_PRIORITY_LEVELS]; /* in each level, those just being sent among them */
} dragon_priority_queue_info;

/* How an endpoint of streams is to be made. Set size to sizeof(dragon_endpoint_options) and all that is not needed to 0. */
typedef struct dragon_endpoint_options {
    size_t size;
    uint64_t user;     /* a number of the caller's choice */
    int32_t buffered;  /* 1: all that a sender writes travels as one message when it finishes */
    uint32_t streams;  /* conversations at once */
    uint32_t kept;     /* stream channels that are kept for the next conversation */
    uint32_t capacity; /* chunks that a stream channel holds before its sender waits */
    uint32_t block;    /* chunks up to so many bytes travel in the stream channel's own memory */
    uint32_t reserved; /* 0 */
} dragon_endpoint_options;

/* How a broadcast is to be made. Set size to sizeof(dragon_broadcast_options) and all that is not needed to 0. */
typedef struct dragon_broadcast_options {
    size_t size;
    uint64_t user;         /* a number of the caller's choice, carried in descriptors */
    uint32_t waiters;      /* threads that can wait at once, at most 65536; 0: 1024 */
    uint32_t inline_bytes; /* payloads up to so many bytes lie in the broadcast's own memory, longer ones in the pool; 0: 128 */
    uint32_t payloads;     /* payloads that can be on their way at once, at most 255: triggered, and not yet read by all whom
                            * they woke; 0: 8 */
    uint32_t reserved;     /* 0 */
} dragon_broadcast_options;

#define DRAGON_BY_POLICY (-1)   /* dragon_spawn_request.node */
#define DRAGON_OUTPUT_FORWARD 0 /* dragon_spawn_request.output: to the output of the job */
#define DRAGON_OUTPUT_NULL 1    /* nowhere */

/* How a process is to be started. size is sizeof(dragon_spawn_request), what is not needed is 0 (node: see there). */
typedef struct dragon_spawn_request {
    size_t size;
    int32_t node;                   /* index of the node, or DRAGON_BY_POLICY */
    int32_t output;                 /* DRAGON_OUTPUT_... */
    const dragon_bytes *argv;       /* an executable and its arguments, without NULs; or options of the interpreter */
    size_t argc;
    const char *interpreter;        /* a Python worker instead: the interpreter's path */
    dragon_bytes preload;           /* what it imports before it forks workers, as the package dragon writes it */
    dragon_bytes payload;           /* what the worker unpickles */
    const char *const *environment; /* "NAME=value" strings and a final NULL; NULL: the caller's environment */
    const char *directory;          /* working directory; NULL: the caller's */
    const dragon_channel *notify;   /* gets one exit notice (24 bytes) when the process has ended; NULL: nobody does */
    int32_t lives;                  /* DRAGON_LIVES_... */
} dragon_spawn_request;

/* dragon_process_options.policy: how a process is placed whose request says DRAGON_BY_POLICY. */
#define DRAGON_POLICY_DEFAULT 0     /* as DRAGON_PLACEMENT of its environment says, in turn when that says nothing */
#define DRAGON_POLICY_ROUND_ROBIN 1 /* in turn */
#define DRAGON_POLICY_BLOCK 2       /* runs of equal length, for those of one request */
#define DRAGON_POLICY_PACKED 3      /* as many as the node has CPUs for, then the next node */
#define DRAGON_POLICY_LOCAL 4       /* here */
#define DRAGON_POLICY_REMOTE 5      /* in turn on the other nodes */
#define DRAGON_LIVES_ON 0           /* dragon_spawn_request.lives: until the runtime ends */
#define DRAGON_LIVES_WITH_CREATOR 1 /* it is killed, with all that it started, when its creator has ended or left */
#define DRAGON_OUTPUT_APPEND 1      /* dragon_process_options.output, joined by |: output goes to the end of its files */
#define DRAGON_OUTPUT_MERGE 4       /* standard error goes where standard output goes */
#define DRAGON_UNLIMITED UINT64_MAX
#define DRAGON_LIMIT_CPU 0 /* dragon_limit.kind: seconds of processor time */
#define DRAGON_LIMIT_FILE_SIZE 1
#define DRAGON_LIMIT_DATA 2
#define DRAGON_LIMIT_STACK 3
#define DRAGON_LIMIT_CORE 4
#define DRAGON_LIMIT_PROCESSES 5
#define DRAGON_LIMIT_OPEN_FILES 6
#define DRAGON_LIMIT_LOCKED_MEMORY 7
#define DRAGON_LIMIT_ADDRESS_SPACE 8

/* A resource limit, as setrlimit has it. */
typedef struct dragon_limit {
    uint32_t kind; /* DRAGON_LIMIT_... */
    uint32_t reserved;
    uint64_t soft; /* the limit that counts, or DRAGON_UNLIMITED */
    uint64_t hard; /* how far the process may raise it */
} dragon_limit;

/* With what a process starts, beside its request. Set size to sizeof(dragon_process_options), umask and numa_node to -1, and
 * all that is not needed to 0. CPUs and GPUs are reserved from what the job was granted on the process's node, until it ends:
 * it is bound to the CPUs, and its environment names the GPUs. When they are not free the start is refused with DRAGON_FULL,
 * or waits for resource_timeout and is refused with DRAGON_TIMEOUT; a signal ends that wait with DRAGON_INTERRUPTED. */
typedef struct dragon_process_options {
    size_t size;
    int32_t policy;            /* DRAGON_POLICY_... */
    int32_t umask;             /* file mode creation mask; -1: the daemon's */
    int32_t nice;              /* added to its nice value */
    int32_t lives;             /* DRAGON_LIVES_... */
    const char *host;          /* the host to run on; NULL: as policy says */
    uint32_t cpus;             /* how many CPUs to reserve */
    uint32_t gpus;             /* how many GPUs to reserve */
    const uint32_t *cpu_set;   /* which CPUs to reserve, by the kernel's numbers; NULL: any */
    size_t cpu_count;
    int32_t numa_node;         /* reserve CPUs of this NUMA node, all that were granted when cpus is 0; -1: of any */
    int32_t output;            /* DRAGON_OUTPUT_APPEND, DRAGON_OUTPUT_MERGE */
    uint64_t resource_timeout; /* nanoseconds to wait for CPUs and GPUs */
    const char *input_file;    /* what it reads, on its node; NULL: nothing */
    const char *output_file;   /* where its standard output goes, on its node; NULL: as the request says */
    const char *error_file;    /* likewise its standard error */
    const dragon_limit *limits;
    size_t limit_count;
} dragon_process_options;

/* How a pool is to be made. Set size to sizeof(dragon_pool_options), numa_node to -1, and all that is not needed to 0. */
typedef struct dragon_pool_options {
    size_t size;
    uint64_t limit;         /* bytes that it may grow to, rounded up to 2 MiB; 0: 1 GiB */
    uint64_t user;          /* a number of the caller's choice, carried in descriptors */
    uint32_t minimum_block; /* no block is smaller: a power of two from 64 to 32768; 0: 64 */
    int32_t huge_pages;     /* not 0: ask for huge pages; dragon_pool_stats.huge tells what was obtained */
    int32_t numa_node;      /* take all memory from this NUMA node; -1: from any */
    int32_t pre_touch;      /* not 0: take and touch all memory at once */
    const char *name;       /* for people, at most 64 bytes; NULL: none */
    const char *file;       /* absolute path of a file that is made to hold the data; NULL: in memory */
} dragon_pool_options;

/* How full a pool is. */
typedef struct dragon_pool_stats {
    uint64_t limit;     /* bytes that it may grow to */
    uint64_t committed; /* bytes that it has taken from the system */
    uint64_t used;      /* bytes in blocks */
    uint64_t blocks;
    uint64_t huge;      /* bytes of this process's mapping that lie in huge pages */
} dragon_pool_stats;

/* One result of dragon_spawn_many. */
typedef struct dragon_spawn_result {
    int32_t code;            /* a dragon_code */
    uint32_t pid;            /* on the process's node */
    dragon_process *process; /* NULL unless code is 0 */
} dragon_spawn_result;

/* Library and runtime ------------------------------------------------------------------------------------------- */

/* The release of the library, as "major.minor.patch". */
const char *dragon_version(void);
/* The text of this thread's last failed call, "" when none failed. Valid until the thread's next failed call. */
const char *dragon_last_error(void);
/* A short text for a dragon_code. */
const char *dragon_code_text(int32_t code);
/* Attaches this process now. Does nothing when it is attached already. */
int32_t dragon_attach(void);
/* 1 when this process is attached, else 0. */
int32_t dragon_is_attached(void);
/* Leaves the runtime, as the end of the process does. DRAGON_INVALID_ARGUMENT: handles or messages are open. */
int32_t dragon_detach(void);
int32_t dragon_runtime_info(dragon_runtime *info);
/* Fills at most capacity entries; *count is how many there are. */
int32_t dragon_nodes(dragon_node *nodes, size_t capacity, size_t *count);
int32_t dragon_stats(dragon_stat *stats, size_t capacity, size_t *count);

/* Descriptors: an object's name that travels ---------------------------------------------------------------------- */

/* The printable form. capacity DRAGON_DESCRIPTOR_TEXT is always enough. */
int32_t dragon_descriptor_text(const uint8_t descriptor[32], char *text, size_t capacity);
int32_t dragon_descriptor_parse(const char *text, uint8_t descriptor[32]);

/* For all kinds of object:   _create      makes an object on this node.   _attach      makes a handle from a descriptor. adopt 1:
 * take over the reference that _export counted, so that the                object lives on even when the exporter has gone; each
 * export is adopted at most once.   _close       gives the handle back. The object's memory goes with its last reference.   _destroy
 * fails all operations of everybody on it with DRAGON_DESTROYED, from now on. The handle is still to be                closed.
 * _descriptor  its name, which keeps nothing alive.   _export      its name together with one reference in transit.   _set_wait_mode
 * how this handle waits from its next wait on, a dragon_wait_mode; children forked later inherit it. Units of time are nanoseconds;
 * user is a number of the caller's choice, carried in descriptors. */

/* Channels --------------------------------------------------------------------------------------------------------- */

/* options may be NULL. */
int32_t dragon_channel_create(const dragon_channel_options *options, dragon_channel **channel);
int32_t dragon_channel_attach(const uint8_t descriptor[32], int32_t adopt, dragon_channel **channel);
int32_t dragon_channel_close(dragon_channel *channel);
/* Fails all operations of everybody on it with DRAGON_DESTROYED, from now on. The handle is still to be closed. */
int32_t dragon_channel_destroy(const dragon_channel *channel);
int32_t dragon_channel_descriptor(const dragon_channel *channel, uint8_t descriptor[32]);
int32_t dragon_channel_export(const dragon_channel *channel, uint8_t descriptor[32]);
int32_t dragon_channel_set_wait_mode(const dragon_channel *channel, int32_t mode);
/* Sends the parts as one message. */
int32_t dragon_channel_send(const dragon_channel *channel, const dragon_bytes *parts, size_t count, uint64_t hint, int64_t timeout);
/* Sends the parts as one message, as the options say. */
int32_t dragon_channel_send_with(const dragon_channel *channel, const dragon_bytes *parts, size_t count,
                                 const dragon_send_options *options, int64_t timeout);
/* Sends count messages in their order, each with its hint (hints NULL: 0); the timeout is for all of them together. *sent: how
 * many; fewer than count when time was up, or something failed after the first. An error: not a single one. */
int32_t dragon_channel_send_many(const dragon_channel *channel, const dragon_bytes *messages, const uint64_t *hints, size_t count,
                                 int64_t timeout, size_t *sent);
/* On success the caller owes one dragon_message_release. */
int32_t dragon_channel_receive(const dragon_channel *channel, int64_t timeout, dragon_message *message);
/* Takes the oldest message into capacity bytes at buffer. DRAGON_TOO_LARGE: it is longer, and stays in the channel. */
int32_t dragon_channel_receive_into(const dragon_channel *channel, void *buffer, size_t capacity, int64_t timeout,
                                    dragon_received *received);
/* Waits for the first message, and takes what else is there: *count, at most capacity (not 0). Release each of them. */
int32_t dragon_channel_receive_many(const dragon_channel *channel, int64_t timeout, dragon_message *messages, size_t capacity,
                                    size_t *count);
/* A copy of the oldest message, which stays in the channel. The copy is to be released. */
int32_t dragon_channel_peek(const dragon_channel *channel, int64_t timeout, dragon_message *message);
/* The trace id that the sender gave: *traced is 0 when it gave none. Not for a message that was released. */
int32_t dragon_message_trace(const dragon_message *message, uint8_t trace[16], int32_t *traced);
/* Releasing a message that was released already, or was zeroed and never received, does nothing. */
int32_t dragon_message_release(dragon_message *message);
/* Waits until there is something to receive; *count: how many messages. DRAGON_TRY always succeeds, perhaps with 0. */
int32_t dragon_channel_poll(const dragon_channel *channel, int64_t timeout, uint64_t *count);
/* Waits until the channel is in a state, a dragon_poll; *count (may be NULL): how many messages it has then. Others may change
 * it at once. With DRAGON_TRY: DRAGON_EMPTY when it is not in that state. */
int32_t dragon_channel_poll_for(const dragon_channel *channel, int32_t state, int64_t timeout, uint64_t *count);
int32_t dragon_channel_get_info(const dragon_channel *channel, dragon_channel_info *info);
/* Messages in it now, and how many it can hold. */
int32_t dragon_channel_attributes(const dragon_channel *channel, uint64_t *count, uint64_t *capacity);

/* Queues with priorities: the most urgent message comes first, and within a level the oldest ------------------------- */

/* options may be NULL. */
int32_t dragon_priority_queue_create(const dragon_priority_queue_options *options, dragon_priority_queue **queue);
int32_t dragon_priority_queue_attach(const uint8_t descriptor[32], int32_t adopt, dragon_priority_queue **queue);
int32_t dragon_priority_queue_close(dragon_priority_queue *queue);
int32_t dragon_priority_queue_destroy(const dragon_priority_queue *queue);
int32_t dragon_priority_queue_descriptor(const dragon_priority_queue *queue, uint8_t descriptor[32]);
int32_t dragon_priority_queue_export(const dragon_priority_queue *queue, uint8_t descriptor[32]);
int32_t dragon_priority_queue_set_wait_mode(const dragon_priority_queue *queue, int32_t mode);
/* Sends the parts as one message to a level, 0 the most urgent. DRAGON_INVALID_ARGUMENT: the queue has no such level.
 * DRAGON_FULL, DRAGON_TIMEOUT: the level has no room, whatever room the others have. */
int32_t dragon_priority_queue_send(const dragon_priority_queue *queue, uint32_t level, const dragon_bytes *parts, size_t count,
                                   uint64_t hint, int64_t timeout);
/* As dragon_pool_block_send. */
int32_t dragon_priority_queue_send_block(const dragon_priority_queue *queue, uint32_t level, dragon_pool_block **block,
                                         uint64_t hint, int64_t timeout);
/* Takes the most urgent message; *level (may be NULL): where it was. On success the caller owes one dragon_message_release. */
int32_t dragon_priority_queue_receive(const dragon_priority_queue *queue, int64_t timeout, dragon_message *message, uint32_t *level);
/* A copy of the most urgent message, which stays in the queue. The copy is to be released. */
int32_t dragon_priority_queue_peek(const dragon_priority_queue *queue, int64_t timeout, dragon_message *message, uint32_t *level);
/* Waits until there is something to receive; *count: how many messages. DRAGON_TRY always succeeds, perhaps with 0. */
int32_t dragon_priority_queue_poll(const dragon_priority_queue *queue, int64_t timeout, uint64_t *count);
int32_t dragon_priority_queue_get_info(const dragon_priority_queue *queue, dragon_priority_queue_info *info);

/* Locks ------------------------------------------------------------------------------------------------------------ */

/* A lock that belongs to the process that acquires it, not to the thread: another thread of the process may release it. */
int32_t dragon_lock_create(uint64_t user, dragon_lock **lock);
/* A lock that the thread which has it may acquire again, and releases as often. When its owner dies it is free at any depth. */
int32_t dragon_lock_create_recursive(uint64_t user, dragon_lock **lock);
int32_t dragon_lock_attach(const uint8_t descriptor[32], int32_t adopt, dragon_lock **lock);
int32_t dragon_lock_close(dragon_lock *lock);
int32_t dragon_lock_destroy(const dragon_lock *lock);
int32_t dragon_lock_descriptor(const dragon_lock *lock, uint8_t descriptor[32]);
int32_t dragon_lock_export(const dragon_lock *lock, uint8_t descriptor[32]);
int32_t dragon_lock_set_wait_mode(const dragon_lock *lock, int32_t mode);
/* *owner_died (may be NULL): 1 when the lock was obtained because its last owner died while it held it. */
int32_t dragon_lock_acquire(const dragon_lock *lock, int64_t timeout, int32_t *owner_died);
/* any 0: only the process that holds it may; else DRAGON_NOT_OWNER. any 1: every process may. A recursive lock is released
 * by the thread that holds it and by nobody else, whatever any says. */
int32_t dragon_lock_release(const dragon_lock *lock, int32_t any);

/* Events ----------------------------------------------------------------------------------------------------------- */

int32_t dragon_event_create(uint64_t user, dragon_event **event);
int32_t dragon_event_attach(const uint8_t descriptor[32], int32_t adopt, dragon_event **event);
int32_t dragon_event_close(dragon_event *event);
int32_t dragon_event_destroy(const dragon_event *event);
int32_t dragon_event_descriptor(const dragon_event *event, uint8_t descriptor[32]);
int32_t dragon_event_export(const dragon_event *event, uint8_t descriptor[32]);
int32_t dragon_event_set_wait_mode(const dragon_event *event, int32_t mode);
int32_t dragon_event_set(const dragon_event *event);
int32_t dragon_event_clear(const dragon_event *event);
int32_t dragon_event_wait(const dragon_event *event, int64_t timeout);
int32_t dragon_event_is_set(const dragon_event *event, int32_t *set);

/* Semaphores ------------------------------------------------------------------------------------------------------- */

/* Units that processes take and give. max: the value that a release may not exceed; else DRAGON_INVALID_ARGUMENT. One process
 * may take a unit and another give it; the units of a process that dies are gone. */
int32_t dragon_semaphore_create(uint32_t value, uint32_t max, uint64_t user, dragon_semaphore **semaphore);
/* A semaphore of at most 65471 units whose units have an owner: only the process that took units may give them, else
 * DRAGON_NOT_OWNER, and what a process had is given back when it dies. */
int32_t dragon_semaphore_create_owned(uint32_t value, uint32_t max, uint64_t user, dragon_semaphore **semaphore);
int32_t dragon_semaphore_attach(const uint8_t descriptor[32], int32_t adopt, dragon_semaphore **semaphore);
int32_t dragon_semaphore_close(dragon_semaphore *semaphore);
int32_t dragon_semaphore_destroy(const dragon_semaphore *semaphore);
int32_t dragon_semaphore_descriptor(const dragon_semaphore *semaphore, uint8_t descriptor[32]);
int32_t dragon_semaphore_export(const dragon_semaphore *semaphore, uint8_t descriptor[32]);
int32_t dragon_semaphore_set_wait_mode(const dragon_semaphore *semaphore, int32_t mode);
/* Takes one unit. */
int32_t dragon_semaphore_acquire(const dragon_semaphore *semaphore, int64_t timeout);
/* Takes units (1 to max) at once, or none of them. */
int32_t dragon_semaphore_acquire_many(const dragon_semaphore *semaphore, uint32_t units, int64_t timeout);
/* Waits until all units are taken. A moment of that is noticed also when it is over at once. */
int32_t dragon_semaphore_wait_zero(const dragon_semaphore *semaphore, int64_t timeout);
/* Gives count units (1 to max). */
int32_t dragon_semaphore_release(const dragon_semaphore *semaphore, uint32_t count);
int32_t dragon_semaphore_value(const dragon_semaphore *semaphore, uint32_t *value);

/* Barriers: a fixed number of parties wait for each other, again and again ------------------------------------------ */

/* parties: how many, 1 to 65536, threads of processes of any nodes. A party that gives up or dies breaks the barrier: the
 * others, and all who come, get DRAGON_BROKEN until somebody resets it. */
int32_t dragon_barrier_create(uint32_t parties, uint64_t user, dragon_barrier **barrier);
int32_t dragon_barrier_attach(const uint8_t descriptor[32], int32_t adopt, dragon_barrier **barrier);
int32_t dragon_barrier_close(dragon_barrier *barrier);
int32_t dragon_barrier_destroy(const dragon_barrier *barrier);
int32_t dragon_barrier_descriptor(const dragon_barrier *barrier, uint8_t descriptor[32]);
int32_t dragon_barrier_export(const dragon_barrier *barrier, uint8_t descriptor[32]);
int32_t dragon_barrier_set_wait_mode(const dragon_barrier *barrier, int32_t mode);
/* Arrives, and waits until all parties are there. *number (may be NULL): each party gets another one, 0 to parties - 1.
 * DRAGON_TIMEOUT: this party's time was up, which has broken it. DRAGON_EMPTY (DRAGON_TRY) and DRAGON_INTERRUPTED do not. */
int32_t dragon_barrier_wait(const dragon_barrier *barrier, int64_t timeout, uint32_t *number);
/* As dragon_barrier_create, of a barrier at which one party acts before all go on. */
int32_t dragon_barrier_create_with_action(uint32_t parties, uint64_t user, dragon_barrier **barrier);
/* As dragon_barrier_wait, but a signal alone does not end the wait: on_signal decides. *turn is 0, or the party is the one to
 * act: it comes back before the others, who go on when it calls dragon_barrier_acted, and get DRAGON_BROKEN when it dies before.
 * The timeout is for the others to come, not for the action. (dragon_barrier_wait takes the action for done.) */
int32_t dragon_barrier_wait_through_signals(const dragon_barrier *barrier, int64_t timeout, dragon_on_signal on_signal,
                                            void *context, uint32_t *number, uint64_t *turn);
/* The party has acted (done is not 0), or failed: that breaks it. DRAGON_BROKEN: it was already. DRAGON_NOT_OWNER: not its turn. */
int32_t dragon_barrier_acted(const dragon_barrier *barrier, uint64_t turn, int32_t done);
/* Breaks it. */
int32_t dragon_barrier_abort(const dragon_barrier *barrier);
/* Makes it whole again. Who waits at this moment gets DRAGON_BROKEN. */
int32_t dragon_barrier_reset(const dragon_barrier *barrier);
/* How many parties it is for, how many wait, and a dragon_breakage. Each may be NULL. */
int32_t dragon_barrier_state(const dragon_barrier *barrier, uint32_t *parties, uint32_t *waiting, int32_t *broken);

/* Conditions: who holds a lock waits for what others bring about under the same lock --------------------------------- */

/* waiters: threads that can wait at once, at most 65536 (0: 1024). */
int32_t dragon_condition_create(uint32_t waiters, uint64_t user, dragon_condition **condition);
int32_t dragon_condition_attach(const uint8_t descriptor[32], int32_t adopt, dragon_condition **condition);
int32_t dragon_condition_close(dragon_condition *condition);
int32_t dragon_condition_destroy(const dragon_condition *condition);
int32_t dragon_condition_descriptor(const dragon_condition *condition, uint8_t descriptor[32]);
int32_t dragon_condition_export(const dragon_condition *condition, uint8_t descriptor[32]);
int32_t dragon_condition_set_wait_mode(const dragon_condition *condition, int32_t mode);
/* Gives the lock up, waits for a notification, and takes the lock again, at its depth; also when the wait failed, unless the lock
 * was destroyed or its node is down. *owner_died (may be NULL): as for dragon_lock_acquire; with 1 a wait whose time is up succeeds,
 * too. DRAGON_NOT_OWNER: the caller does not hold the lock. DRAGON_TABLE_FULL: as many wait as can. */
int32_t dragon_condition_wait(const dragon_condition *condition, const dragon_lock *lock, int64_t timeout, int32_t *owner_died);
/* As dragon_condition_wait, but on_signal decides whether a signal ends the wait, also while the lock is taken again. A notification
 * that comes meanwhile is kept, or goes to the next. *owner_died is written when the caller has the lock afterwards, and only then. */
int32_t dragon_condition_wait_through_signals(const dragon_condition *condition, const dragon_lock *lock, int64_t timeout,
                                              dragon_on_signal on_signal, void *context, int32_t *owner_died);
/* Wakes up to count who wait (1, DRAGON_ALL), the longest first; *woken (may be NULL): how many. */
int32_t dragon_condition_notify(const dragon_condition *condition, uint32_t count, uint32_t *woken);
/* How many wait at this moment. */
int32_t dragon_condition_waiting(const dragon_condition *condition, uint32_t *waiting);

/* Broadcasts: those who wait at this moment are woken, and get what comes with it ------------------------------------ */

/* options may be NULL. */
int32_t dragon_broadcast_create(const dragon_broadcast_options *options, dragon_broadcast **broadcast);
int32_t dragon_broadcast_attach(const uint8_t descriptor[32], int32_t adopt, dragon_broadcast **broadcast);
int32_t dragon_broadcast_close(dragon_broadcast *broadcast);
int32_t dragon_broadcast_destroy(const dragon_broadcast *broadcast);
int32_t dragon_broadcast_descriptor(const dragon_broadcast *broadcast, uint8_t descriptor[32]);
int32_t dragon_broadcast_export(const dragon_broadcast *broadcast, uint8_t descriptor[32]);
int32_t dragon_broadcast_set_wait_mode(const dragon_broadcast *broadcast, int32_t mode);
/* Waits for the next trigger; on success the caller owes one dragon_message_release. A trigger is for those who wait already,
 * so DRAGON_TRY gives DRAGON_EMPTY. DRAGON_TABLE_FULL: as many wait as can. */
int32_t dragon_broadcast_wait(const dragon_broadcast *broadcast, int64_t timeout, dragon_message *message);
/* Wakes up to count who wait (1, DRAGON_ALL), the longest first, and gives them length bytes (payload may be NULL when length
 * is 0); *woken (may be NULL): how many, perhaps 0. after: not before so many wait (0: at once); while fewer do, DRAGON_EMPTY
 * or DRAGON_TIMEOUT. When as many payloads as can be are on their way: DRAGON_FULL or DRAGON_TIMEOUT. */
int32_t dragon_broadcast_trigger(const dragon_broadcast *broadcast, uint32_t count, uint32_t after, const void *payload,
                                 size_t length, int64_t timeout, uint32_t *woken);
/* How many wait at this moment. */
int32_t dragon_broadcast_waiting(const dragon_broadcast *broadcast, uint32_t *waiting);

/* Pools ------------------------------------------------------------------------------------------------------------ */

/* A pool of shared memory of this node, apart from the default one. It goes when nobody has a handle on it, or a message in it, and
 * it was destroyed or holds no block. options may be NULL. Other nodes' processes may attach, allocate, and copy to and from blocks. */
int32_t dragon_pool_create(const dragon_pool_options *options, dragon_pool **pool);
int32_t dragon_pool_attach(const uint8_t descriptor[32], int32_t adopt, dragon_pool **pool);
int32_t dragon_pool_close(dragon_pool *pool);
int32_t dragon_pool_destroy(const dragon_pool *pool);
int32_t dragon_pool_descriptor(const dragon_pool *pool, uint8_t descriptor[32]);
int32_t dragon_pool_export(const dragon_pool *pool, uint8_t descriptor[32]);
/* Counted page by page: not for hot paths. */
int32_t dragon_pool_get_stats(const dragon_pool *pool, dragon_pool_stats *stats);
/* Gives memory that no pool of this node uses back to the system; *released (may be NULL): how many bytes. */
int32_t dragon_pool_trim(uint64_t *released);
/* Allocates a block, wherever the pool lies. It is this process's until it is sent or freed, and goes with the process. */
int32_t dragon_pool_alloc(const dragon_pool *pool, uint64_t length, dragon_pool_block **block);
/* Where the block lies, until it is sent or freed; *data is NULL for a block of another node. data and length may be NULL. */
int32_t dragon_pool_block_data(dragon_pool_block *block, void **data, uint64_t *length);
/* The node in whose memory it lies. */
int32_t dragon_pool_block_node(const dragon_pool_block *block, uint32_t *node);
/* Blocks of any node: copied to and from, filled, hashed (BLAKE3, computed where the bytes lie) and compared (*order: -1, 0
 * or 1, as by memcmp). Between nodes a copy goes in pieces of 4 MiB, straight between the pools; when it fails,
 * dragon_last_error() says after how many bytes. Both blocks of a copy may be the same one, and the places may overlap. */
int32_t dragon_pool_block_write(dragon_pool_block *block, uint64_t at, const void *data, size_t length);
int32_t dragon_pool_block_read(const dragon_pool_block *block, uint64_t at, void *data, size_t length);
int32_t dragon_pool_block_copy(dragon_pool_block *to, uint64_t to_at, const dragon_pool_block *from, uint64_t from_at, uint64_t length);
int32_t dragon_pool_block_fill(dragon_pool_block *block, uint64_t at, uint64_t length, uint32_t value);
int32_t dragon_pool_block_hash(const dragon_pool_block *block, uint64_t at, uint64_t length, uint8_t hash[32]);
int32_t dragon_pool_block_compare(const dragon_pool_block *first, uint64_t first_at, const dragon_pool_block *second, uint64_t second_at, uint64_t length, int32_t *order);
int32_t dragon_pool_block_free(dragon_pool_block *block);
/* Sends a block, one of this node without copying it. One of another node is fetched first, however long that takes, and freed
 * there when it is sent; dragon_last_error() says how far that came. With success it is the receiver's and *block is NULL;
 * otherwise it stays, and *block may have changed. */
int32_t dragon_pool_block_send(dragon_pool_block **block, const dragon_channel *channel, uint64_t hint, int64_t timeout);

/* Memory: bytes that processes share ----------------------------------------------------------------------------------- */

/* Makes memory in this node's default pool, with contents; NULL: all zeros. user: a number that no other memory of the node has
 * (DRAGON_INVALID_ARGUMENT). It goes with the last handle of all processes. Nothing orders their accesses: use a lock beside it. */
int32_t dragon_memory_create(uint64_t user, const void *contents, size_t length, dragon_memory **memory);
int32_t dragon_memory_attach(const uint8_t descriptor[32], int32_t adopt, dragon_memory **memory);
int32_t dragon_memory_close(dragon_memory *memory);
int32_t dragon_memory_destroy(const dragon_memory *memory);
int32_t dragon_memory_descriptor(const dragon_memory *memory, uint8_t descriptor[32]);
int32_t dragon_memory_export(const dragon_memory *memory, uint8_t descriptor[32]);
/* Where it lies, as long as the handle is open; *data is NULL for memory of another node. data and length may be NULL. */
int32_t dragon_memory_data(const dragon_memory *memory, void **data, uint64_t *length);
/* Copies to and from it, on whatever node it lies. */
int32_t dragon_memory_write(const dragon_memory *memory, uint64_t at, const void *data, size_t length);
int32_t dragon_memory_read(const dragon_memory *memory, uint64_t at, void *data, size_t length);

/* Sets: one wait for thousands of objects, of this node and of others ---------------------------------------------- */

/* capacity: members that it can have. */
int32_t dragon_set_create(uint32_t capacity, uint64_t user, dragon_set **set);
/* DRAGON_UNSUPPORTED: a set of another node. Make one on this node, and add the objects to it: they may lie on any node. */
int32_t dragon_set_attach(const uint8_t descriptor[32], int32_t adopt, dragon_set **set);
int32_t dragon_set_close(dragon_set *set);
int32_t dragon_set_destroy(const dragon_set *set);
int32_t dragon_set_descriptor(const dragon_set *set, uint8_t descriptor[32]);
int32_t dragon_set_export(const dragon_set *set, uint8_t descriptor[32]);
int32_t dragon_set_set_wait_mode(const dragon_set *set, int32_t mode);
/* Adds the channel, queue, event, semaphore, process or endpoint that the descriptor names, of any node; the set does not keep it
 * alive. token comes back when it is ready. *member (may be NULL): its place. */
int32_t dragon_set_add(const dragon_set *set, const uint8_t object[32], uint32_t interest, uint64_t token, uint64_t *member);
int32_t dragon_set_remove(const dragon_set *set, uint64_t member);
/* Waits until members are ready: *count of them, at most capacity, in turn. Who is still ready is reported again by the
 * next wait. DRAGON_TRY asks the owner of each member of another node; a wait hears of them without asking again. */
int32_t dragon_set_wait(const dragon_set *set, int64_t timeout, dragon_ready *ready, size_t capacity, size_t *count);

/* Streams: conversations of unbounded length between one sender and one receiver ----------------------------------- */

/* options may be NULL. */
int32_t dragon_endpoint_create(const dragon_endpoint_options *options, dragon_endpoint **endpoint);
int32_t dragon_endpoint_attach(const uint8_t descriptor[32], int32_t adopt, dragon_endpoint **endpoint);
int32_t dragon_endpoint_close(dragon_endpoint *endpoint);
int32_t dragon_endpoint_destroy(const dragon_endpoint *endpoint);
int32_t dragon_endpoint_descriptor(const dragon_endpoint *endpoint, uint8_t descriptor[32]);
int32_t dragon_endpoint_export(const dragon_endpoint *endpoint, uint8_t descriptor[32]);
int32_t dragon_endpoint_set_wait_mode(const dragon_endpoint *endpoint, int32_t mode);
/* Opens a conversation, and accepts the one that waits longest. An end belongs to its process, not to forked children; of
 * several threads that use one end, one does and the others wait. */
int32_t dragon_endpoint_open_send(const dragon_endpoint *endpoint, int64_t timeout, dragon_stream_sender **sender);
int32_t dragon_endpoint_accept(const dragon_endpoint *endpoint, int64_t timeout, dragon_stream_receiver **receiver);
/* Sends a chunk; the receiver gets argument as the hint. DRAGON_PEER_CLOSED, DRAGON_PEER_DIED: the receiver has ended. */
int32_t dragon_stream_send(const dragon_stream_sender *sender, const void *data, size_t length, uint64_t argument, int64_t timeout);
/* As dragon_pool_block_send. */
int32_t dragon_stream_send_block(const dragon_stream_sender *sender, dragon_pool_block **block, uint64_t argument, int64_t timeout);
/* Ends the conversation: the receiver gets DRAGON_END_OF_STREAM behind what was sent. Waits only in the buffered form,
 * which sends everything here. The handle is still to be closed; closing it finishes, too, without waiting. */
int32_t dragon_stream_sender_finish(const dragon_stream_sender *sender, int64_t timeout);
int32_t dragon_stream_sender_close(dragon_stream_sender *sender);
/* Breaks off, and gives the handle back: the receiver gets DRAGON_PEER_DIED behind what was sent. */
int32_t dragon_stream_sender_abort(dragon_stream_sender **sender);
/* As dragon_channel_receive; or DRAGON_END_OF_STREAM, DRAGON_PEER_DIED behind the last chunk. */
int32_t dragon_stream_receive(const dragon_stream_receiver *receiver, int64_t timeout, dragon_message *message);
/* As much of a chunk as the buffer has room for; *last: 1 when the chunk ends there. argument and last may be NULL. */
int32_t dragon_stream_receive_into(const dragon_stream_receiver *receiver, void *buffer, size_t capacity, int64_t timeout,
                                   size_t *length, uint64_t *argument, int32_t *last);
/* Waits until something is there: *chunk is 1 for a chunk, 0 for the end. */
int32_t dragon_stream_poll(const dragon_stream_receiver *receiver, int64_t timeout, int32_t *chunk);
/* Before the end: the sender's next chunk is refused. */
int32_t dragon_stream_receiver_close(dragon_stream_receiver *receiver);
/* Makes a file descriptor of an end, for read and write or as a child's standard input and output; a thread carries the
 * bytes. The end of the file is the end of the conversation. The handle of the end is given back, *sender or *receiver is
 * NULL afterwards; the descriptor is the caller's to close. */
int32_t dragon_stream_sender_into_fd(dragon_stream_sender **sender, int32_t *fd, dragon_pump **pump);
int32_t dragon_stream_receiver_into_fd(dragon_stream_receiver **receiver, int32_t *fd, dragon_pump **pump);
/* Waits for the thread's end, and gives its handle back; *bytes (or NULL): how many it carried. The code: what ended it early. */
int32_t dragon_pump_join(dragon_pump **pump, uint64_t *bytes);

/* Names ------------------------------------------------------------------------------------------------------------ */

/* How long a name lasts. */
typedef enum {
    DRAGON_UNTIL_UNPUBLISHED = 0, /* until somebody takes it back */
    DRAGON_WITH_PUBLISHER = 1     /* at most as long as the process that published it */
} dragon_lasts;

/* What a name stands for. */
typedef struct {
    int32_t is_object;      /* 1: an object; 0: bytes */
    uint8_t descriptor[32]; /* the object */
    size_t length;          /* how many bytes */
} dragon_value;

/* A name or a key. */
typedef struct {
    uint8_t bytes[256]; /* its bytes, and a NUL */
    size_t length;      /* how many bytes */
} dragon_key;

/* Lets a name (UTF-8, at most 255 bytes) stand for an object of any node, or for at most 64 KiB: for all processes of the
 * runtime, from when this returns. DRAGON_NAME_TAKEN: it stands for something already. A name keeps nothing alive: publish
 * what an _export gave to have an object live on without its publisher. lasts: a dragon_lasts. */
int32_t dragon_name_publish(const char *name, const uint8_t descriptor[32], int32_t lasts);
int32_t dragon_name_publish_bytes(const char *name, const void *bytes, size_t length, int32_t lasts);
/* What a name stands for (DRAGON_NO_SUCH_NAME: nothing). Bytes go to the buffer; DRAGON_TOO_LARGE: there are value->length. */
int32_t dragon_name_lookup(const char *name, dragon_value *value, void *buffer, size_t capacity);
/* As dragon_name_lookup, when it stands for something. DRAGON_TIMEOUT; DRAGON_TRY: DRAGON_NO_SUCH_NAME. */
int32_t dragon_name_wait(const char *name, int64_t timeout, dragon_value *value, void *buffer, size_t capacity);
int32_t dragon_name_unpublish(const char *name);
/* The names that begin so, in order: as many as there is room for; *count: how many there are. */
int32_t dragon_name_list(const char *begin, dragon_key *names, size_t capacity, size_t *count);

/* The key-value store of this node alone. Keys: 1 to 255 bytes; values: up to 64 KiB; all: up to 64 MiB (DRAGON_TABLE_FULL). */
int32_t dragon_kv_put(const void *key, size_t key_length, const void *value, size_t length);
/* DRAGON_NO_SUCH_NAME: the key has no value. DRAGON_TOO_LARGE: *length says how many bytes there are. */
int32_t dragon_kv_get(const void *key, size_t key_length, void *buffer, size_t capacity, size_t *length);
/* As dragon_kv_get, when the key has a value. */
int32_t dragon_kv_wait(const void *key, size_t key_length, int64_t timeout, void *buffer, size_t capacity, size_t *length);
int32_t dragon_kv_delete(const void *key, size_t key_length);
/* Puts a value in if the present one is as expected, else DRAGON_CHANGED. expected NULL: there is none; value NULL: take it out. */
int32_t dragon_kv_compare_and_set(const void *key, size_t key_length, const void *expected, size_t expected_length, const void *value, size_t length);
/* The keys that begin so, as dragon_name_list. */
int32_t dragon_kv_list(const void *begin, size_t begin_length, dragon_key *keys, size_t capacity, size_t *count);

/* Processes -------------------------------------------------------------------------------------------------------- */

/* Starts a process. process and pid may be NULL. */
int32_t dragon_spawn(const dragon_spawn_request *request, dragon_process **process, uint32_t *pid);
/* As dragon_spawn, with options; NULL: none. */
int32_t dragon_spawn_with(const dragon_spawn_request *request, const dragon_process_options *options,
    dragon_process **process, uint32_t *pid);
/* Starts count processes with one request. Returns the first code that is not 0; the other results hold all the same, and the
 * handles of those that run are to be closed. When the request itself failed, all results have its code. */
int32_t dragon_spawn_many(const dragon_spawn_request *requests, size_t count, dragon_spawn_result *results);
int32_t dragon_process_attach(const uint8_t descriptor[32], int32_t adopt, dragon_process **process);
int32_t dragon_process_close(dragon_process *process);
int32_t dragon_process_descriptor(const dragon_process *process, uint8_t descriptor[32]);
int32_t dragon_process_export(const dragon_process *process, uint8_t descriptor[32]);
int32_t dragon_process_set_wait_mode(const dragon_process *process, int32_t mode);
/* *status (may be NULL): as waitpid gives it. Any number of processes may wait, any number of times. */
int32_t dragon_process_wait(const dragon_process *process, int64_t timeout, int32_t *status);
/* Waits until one of the processes has ended, of any node: its place in the list, and its status. */
int32_t dragon_process_wait_any( const dragon_process *const *processes, size_t count, int64_t timeout, size_t *place, int32_t *status);
int32_t dragon_process_signal(const dragon_process *process, int32_t signal_number);
/* To the process, its process group, and every process that descends from it. */
int32_t dragon_process_signal_tree(const dragon_process *process, int32_t signal_number);

#ifdef __cplusplus
}
#endif

#endif
