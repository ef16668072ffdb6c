//! The C header against the library: what it declares is what the library exports, with the same types and layouts.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::mem::{align_of, offset_of, size_of};
use std::process::Command;

use dragon::ffi::{
    DragonBroadcastOptions, DragonBytes, DragonChannelInfo, DragonChannelOptions,
    DragonEndpointOptions, DragonKey, DragonLimit, DragonMessage, DragonNode, DragonPoolOptions,
    DragonPoolStats, DragonPriorityQueueInfo, DragonPriorityQueueOptions, DragonProcessOptions,
    DragonReady, DragonReceived, DragonRuntime, DragonSendOptions, DragonSpawnRequest,
    DragonSpawnResult, DragonStat, DragonValue,
};

use dragon::{Code, WaitMode};
use support::{compile, crate_dir, library, stdout};

fn header() -> String {
    without_comments(&fs::read_to_string(crate_dir().join("c/dragon.h")).unwrap())
}

#[test]
fn the_library_exports_what_the_header_declares() {
    let symbols = stdout(
        Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(library()),
    );
    let exported: BTreeSet<&str> = symbols
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2))
        .collect();
    let declarations = declared();
    let declared: BTreeSet<&str> = declarations.keys().map(String::as_str).collect();
    assert_eq!(exported, declared);
}

#[test]
fn the_library_is_known_by_its_soname() {
    let dynamic = stdout(Command::new("readelf").arg("-d").arg(library()));
    assert!(dynamic.contains("[libdragon.so.1]"), "{dynamic}");
}

#[test]
fn header_and_library_agree_on_types() {
    let (declared, defined) = (declared(), defined());
    for (name, signature) in &declared {
        assert_eq!(Some(signature), defined.get(name), "{name}");
    }
}

#[test]
fn header_and_library_agree_on_layouts_and_numbers() {
    let mut source = String::from("#include <dragon.h>\n");
    let mut claim = |what: String| {
        source.push_str(&format!(
            "_Static_assert({what}, \"{}\");\n",
            what.replace('"', "'")
        ));
    };
    macro_rules! layout {
        ($rust:ty, $c:literal, $($field:ident),+) => {
            claim(format!("sizeof({}) == {}", $c, size_of::<$rust>()));
            claim(format!("_Alignof({}) == {}", $c, align_of::<$rust>()));
            $(claim(format!(
                "offsetof({}, {}) == {}", $c, stringify!($field), offset_of!($rust, $field)
            ));)+
        };
    }
    layout!(DragonBytes, "dragon_bytes", data, length);
    layout!(
        DragonMessage,
        "dragon_message",
        data,
        length,
        hint,
        private_words
    );
    layout!(
        DragonRuntime,
        "dragon_runtime",
        runtime,
        node,
        nodes,
        cpus,
        global_services,
        slot,
        slot_generation
    );
    layout!(
        DragonNode,
        "dragon_node",
        node,
        cpus,
        memory,
        pid,
        host,
        address
    );
    layout!(DragonStat, "dragon_stat", name, value);
    layout!(DragonValue, "dragon_value", is_object, descriptor, length);
    layout!(DragonKey, "dragon_key", bytes, length);
    layout!(
        DragonPoolOptions,
        "dragon_pool_options",
        size,
        limit,
        user,
        minimum_block,
        huge_pages,
        numa_node,
        pre_touch,
        name,
        file
    );
    layout!(
        DragonPoolStats,
        "dragon_pool_stats",
        limit,
        committed,
        used,
        blocks,
        huge
    );
    layout!(DragonReady, "dragon_ready", token, member, ready, reserved);
    layout!(
        DragonChannelOptions,
        "dragon_channel_options",
        size,
        user,
        capacity,
        block,
        limit,
        reserved
    );
    layout!(
        DragonEndpointOptions,
        "dragon_endpoint_options",
        size,
        user,
        buffered,
        streams,
        kept,
        capacity,
        block,
        reserved
    );
    layout!(
        DragonPriorityQueueOptions,
        "dragon_priority_queue_options",
        size,
        user,
        levels,
        capacity,
        block,
        reserved
    );
    layout!(
        DragonPriorityQueueInfo,
        "dragon_priority_queue_info",
        size,
        capacity,
        block,
        bytes,
        senders_waiting,
        receivers_waiting,
        levels,
        reserved,
        messages
    );
    layout!(
        DragonSendOptions,
        "dragon_send_options",
        size,
        hint,
        trace,
        returns,
        reserved
    );
    layout!(
        DragonReceived,
        "dragon_received",
        length,
        hint,
        trace,
        traced,
        reserved
    );
    layout!(
        DragonChannelInfo,
        "dragon_channel_info",
        size,
        messages,
        capacity,
        block,
        bytes,
        senders_waiting,
        receivers_waiting,
        watchers,
        segments,
        grows,
        reserved
    );
    layout!(
        DragonBroadcastOptions,
        "dragon_broadcast_options",
        size,
        user,
        waiters,
        inline_bytes,
        payloads,
        reserved
    );
    layout!(DragonSpawnResult, "dragon_spawn_result", code, pid, process);
    layout!(
        DragonSpawnRequest,
        "dragon_spawn_request",
        size,
        node,
        output,
        argv,
        argc,
        interpreter,
        preload,
        payload,
        environment,
        directory,
        notify,
        lives
    );
    layout!(DragonLimit, "dragon_limit", kind, reserved, soft, hard);
    layout!(
        DragonProcessOptions,
        "dragon_process_options",
        size,
        policy,
        umask,
        nice,
        lives,
        host,
        cpus,
        gpus,
        cpu_set,
        cpu_count,
        numa_node,
        output,
        resource_timeout,
        input_file,
        output_file,
        error_file,
        limits,
        limit_count
    );
    let modes = ["ADAPTIVE", "SPIN", "SLEEP"];
    for (name, mode) in modes
        .into_iter()
        .zip([WaitMode::Adaptive, WaitMode::Spin, WaitMode::Sleep])
    {
        claim(format!("DRAGON_WAIT_{name} == {}", mode as u32));
    }
    // Every number that the library knows has a name in the header.
    let codes =
        (0..64).filter(|&n| n == Code::Corrupt.to_i32() || Code::from_i32(n) != Code::Corrupt);
    for code in codes {
        let name = c_name(&format!("{:?}", Code::from_i32(code))).to_uppercase();
        claim(format!("{name} == {code}"));
    }
    source.push_str("int main(void) { return dragon_version()[0] == 0; }\n");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layout.c");
    fs::write(&file, source).unwrap();
    let program = compile(dir.path(), &file);
    stdout(&mut Command::new(program));
}

#[test]
fn cpp_takes_the_header() {
    let file = crate_dir().join("c/dragon.h");
    let mut cpp = Command::new("c++");
    cpp.args([
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsyntax-only",
        "-x",
        "c++",
    ])
    .arg(file);
    match cpp.output() {
        Ok(output) => assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => eprintln!("left out: no C++ compiler ({error})"),
    }
}

fn without_comments(source: &str) -> String {
    let mut kept = String::new();
    let mut rest = source;
    while let Some(start) = rest.find("/*") {
        kept.push_str(&rest[..start]);
        rest = &rest[start + rest[start..].find("*/").unwrap() + 2..];
    }
    kept + rest
}

/// Name → result and parameter types in C, from the header.
fn declared() -> BTreeMap<String, String> {
    let header = header();
    let lines: Vec<&str> = header
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .collect();
    lines
        .join(" ")
        .split(';')
        .filter_map(|statement| {
            let statement = statement.rsplit(['{', '}']).next()?;
            // A type of functions is no function.
            if statement.trim_start().starts_with("typedef") {
                return None;
            }
            let (head, parameters) = statement.trim().split_once('(')?;
            let (result, name) = head.rsplit_once([' ', '*'])?;
            let result = if head.contains('*') {
                format!("{}*", result.trim_end_matches('*'))
            } else {
                result.to_owned()
            };
            let parameters = parameters.trim_end().strip_suffix(')')?;
            let types: Vec<String> = parameters.split(',').map(c_parameter).collect();
            Some((
                name.to_owned(),
                format!("{}({})", squeeze(&result), types.join(",")),
            ))
        })
        .collect()
}

/// `const uint8_t descriptor[32]` → `const uint8_t[32]*`, `dragon_lock *lock` → `dragon_lock*`.
fn c_parameter(parameter: &str) -> String {
    let parameter = parameter.trim();
    if parameter == "void" {
        return String::new();
    }
    if let Some((head, length)) = parameter.split_once('[') {
        let (kind, _name) = head.trim().rsplit_once(' ').unwrap();
        return squeeze(&format!("{kind}[{length}*"));
    }
    let end = parameter.rfind([' ', '*']).unwrap();
    squeeze(&parameter[..=end])
}

/// Name → result and parameter types in C, from the Rust sources.
fn defined() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    // Functions that objects of all kinds have: parameter of the macro → signature for the type `Object`.
    let mut common = BTreeMap::new();
    let mut objects = Vec::new();
    for file in fs::read_dir(crate_dir().join("src/ffi")).unwrap() {
        let source = fs::read_to_string(file.unwrap().path()).unwrap();
        for part in source.split("fn dragon_").skip(1) {
            let (name, signature) = signature(part);
            found.insert(format!("dragon_{name}"), signature);
        }
        let macros = source.split("macro_rules! object").nth(1).unwrap_or("");
        for part in macros
            .split("fn $")
            .skip(1)
            .take_while(|part| part.contains("$name:"))
        {
            let (name, signature) = signature(&part.replace("$object", "Object"));
            common.insert(name, signature);
        }
        // Type { role: name, … }
        for part in source.split("\nobject! {").skip(1) {
            let (head, rest) = part.split_once('{').unwrap();
            let kind = head.split_whitespace().next().unwrap().to_owned();
            for (role, name) in rest
                .split_once('}')
                .unwrap()
                .0
                .split(',')
                .filter_map(|pair| pair.split_once(':'))
            {
                objects.push((kind.clone(), role.trim().to_owned(), name.trim().to_owned()));
            }
        }
    }
    for (kind, role, name) in objects {
        let signature = common[&role].replace("dragon_object", &c_name(&kind));
        found.insert(name, signature);
    }
    found
}

/// Name and signature of a function: `name(parameters) -> result {`. What has no result gives a code.
fn signature(source: &str) -> (String, String) {
    let (name, rest) = source.split_once('(').unwrap();
    let (parameters, rest) = rest.split_once(')').unwrap();
    let head = rest.split_once('{').unwrap().0;
    let result = head.split_once("->").map_or("i32", |(_, result)| result);
    let types: Vec<String> = parameters
        .split(',')
        .filter_map(|parameter| parameter.split_once(": "))
        .map(|(_, kind)| c_type(kind))
        .collect();
    let signature = format!("{}({})", c_type(result), types.join(","));
    (name.to_owned(), signature)
}

/// A Rust type as C writes it.
fn c_type(kind: &str) -> String {
    let kind = kind.trim();
    if let Some((generic, argument)) = kind.split_once('<') {
        let argument = argument.strip_suffix('>').unwrap();
        return match generic.rsplit("::").next().unwrap() {
            "Option" => c_type(argument),
            "Out" | "Wanted" | "Box" => format!("{}*", c_type(argument)),
            "Taken" => format!("{}**", c_type(argument)),
            other => panic!("{other}<{argument}>"),
        };
    }
    if let Some(target) = kind.strip_prefix("&mut ").or(kind.strip_prefix("*mut ")) {
        return format!("{}*", c_type(target));
    }
    if let Some(target) = kind.strip_prefix('&') {
        return c_type(&format!("*const {target}"));
    }
    if let Some(target) = kind.strip_prefix("*const ") {
        // A pointer to a pointer that may not be written.
        let target = c_type(target);
        return if target.ends_with('*') {
            format!("{target}const*")
        } else {
            format!("const{target}*")
        };
    }
    if let Some(array) = kind.strip_prefix('[') {
        let (element, length) = array.trim_end_matches(']').split_once(';').unwrap();
        return format!("{}[{}]", c_type(element), length.trim());
    }
    match kind.rsplit("::").next().unwrap() {
        "Deadline" => "int64_t".to_owned(),
        "WaitMode" | "Poll" => "int32_t".to_owned(),
        "Descriptor" => "constuint8_t[32]*".to_owned(),
        "DescriptorBytes" => "uint8_t[32]".to_owned(),
        "u8" => "uint8_t".to_owned(),
        "c_void" => "void".to_owned(),
        "i32" => "int32_t".to_owned(),
        "u32" => "uint32_t".to_owned(),
        "i64" => "int64_t".to_owned(),
        "u64" => "uint64_t".to_owned(),
        "usize" => "size_t".to_owned(),
        "c_char" => "char".to_owned(),
        name => c_name(name.strip_prefix("Dragon").unwrap_or(name)),
    }
}

/// `SpawnRequest` → `dragon_spawn_request`.
fn c_name(name: &str) -> String {
    let mut c = String::from("dragon");
    for letter in name.chars() {
        if letter.is_uppercase() {
            c.push('_');
        }
        c.extend(letter.to_lowercase());
    }
    c
}

fn squeeze(text: &str) -> String {
    text.chars()
        .filter(|letter| !letter.is_whitespace())
        .collect()
}
