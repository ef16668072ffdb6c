//! What every backing of a region promises, on all of them.

use std::os::fd::OwnedFd;

use super::*;

const RUNTIME: RuntimeId = RuntimeId(7);
const KIND: u32 = 5;
const SIZE: u64 = 4 << 20;

/// A region of each backing. Under Miri the private one is all there is.
fn all() -> Vec<Region> {
    let mut all = vec![Region::create_private(KIND, RUNTIME, SIZE).unwrap()];
    if !cfg!(miri) {
        all.push(Region::create("test", KIND, RUNTIME, SIZE).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region");
        all.push(Region::create_in_file(&path, KIND, RUNTIME, SIZE).unwrap());
    }
    all
}

/// The same memory as another process has it.
fn mapped_again(region: &Region) -> Result<Region> {
    let fd = |region: &Region| -> OwnedFd { region.fd().unwrap().try_clone_to_owned().unwrap() };
    match region.backing() {
        Backing::Memfd => Region::map(fd(region), region.size(), KIND, RUNTIME),
        Backing::File => Region::map_file(fd(region), region.size(), KIND, RUNTIME),
        Backing::Heap => Ok(region.clone()),
    }
}

#[test]
fn a_new_region_is_zeros_of_its_size() {
    for region in all() {
        assert_eq!(region.size(), SIZE);
        let mut bytes = [1; 64];
        for offset in [HEADER, SIZE / 2, SIZE - 64] {
            region.copy_out(offset, &mut bytes).unwrap();
            assert_eq!(bytes, [0; 64], "{:?}", region.backing());
        }
    }
}

#[test]
fn what_one_process_writes_the_other_reads() {
    for region in all() {
        let theirs = mapped_again(&region).unwrap();
        region.copy_in(SIZE - 5, b"there").unwrap();
        let mut bytes = [0; 5];
        theirs.copy_out(SIZE - 5, &mut bytes).unwrap();
        assert_eq!(&bytes, b"there");
        let word: &AtomicU64 = region.view(4096).unwrap();
        let same: &AtomicU64 = theirs.view(4096).unwrap();
        word.store(9, Ordering::Release);
        assert_eq!(same.load(Ordering::Acquire), 9);
    }
}

#[test]
fn nothing_outside_is_reached() {
    for region in all() {
        let mut bytes = [0; 16];
        for offset in [SIZE - 15, SIZE, u64::MAX - 8, u64::MAX] {
            assert!(region.copy_in(offset, &[0; 16]).is_err(), "{offset}");
            assert!(region.copy_out(offset, &mut bytes).is_err(), "{offset}");
            assert!(region.commit(offset, 16).is_err(), "{offset}");
            assert!(region.release(offset, 16).is_err(), "{offset}");
            assert!(region.populate(offset, 16).is_err(), "{offset}");
        }
        assert!(region.view::<AtomicU64>(4).is_err(), "not aligned");
        assert!(region.slice::<AtomicU64>(64, usize::MAX).is_err());
        let all = usize::try_from(SIZE / 8).unwrap();
        assert_eq!(region.slice::<AtomicU64>(0, all).unwrap().len(), all);
    }
}

#[test]
fn offsets_are_aligned_as_they_look() {
    for region in all() {
        for align in [64_u64, 4096, 64 << 10] {
            if region.backing() != Backing::Heap && align > 4096 {
                continue;
            }
            let at = region.bytes(align, 1).unwrap().addr().get() as u64;
            assert!(at.is_multiple_of(align), "{:?} {align}", region.backing());
        }
    }
}

#[test]
fn released_memory_is_gone_and_comes_back_as_zeros() {
    let chunk = SIZE / 2;
    for region in all() {
        let before = region.resident().unwrap();
        region.commit(chunk, chunk).unwrap();
        region.populate(chunk, chunk).unwrap();
        region.copy_in(chunk, &[7; 100]).unwrap();
        if region.backing() != Backing::Heap {
            assert!(region.resident().unwrap() >= before + chunk);
        }
        region.release(chunk, chunk).unwrap();
        if region.backing() != Backing::Heap {
            assert!(region.resident().unwrap() <= before + 64 * 1024);
        }
        region.commit(chunk, chunk).unwrap();
        let mut bytes = [1; 100];
        region.copy_out(chunk, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 100], "{:?}", region.backing());
    }
}

#[test]
#[cfg_attr(miri, ignore = "there is nothing to map")]
fn a_region_of_another_kind_or_runtime_is_refused() {
    for region in all() {
        let Ok(fd) = region.fd() else {
            assert_eq!(region.fd().err(), Some(Error::PrivateRegion));
            continue;
        };
        let map = |size, kind, runtime| {
            let fd = fd.try_clone_to_owned().unwrap();
            let mapped = match region.backing() {
                Backing::File => Region::map_file(fd, size, kind, runtime),
                _ => Region::map(fd, size, kind, runtime),
            };
            match mapped {
                Ok(_) => "none",
                Err(Error::Region { what, .. }) => what,
                Err(Error::OtherRuntime { .. }) => "runtime",
                Err(other) => panic!("{other}"),
            }
        };
        assert_eq!(map(SIZE, KIND, RUNTIME), "none");
        assert_eq!(map(SIZE - 4096, KIND, RUNTIME), "size");
        assert_eq!(map(SIZE, KIND + 1, RUNTIME), "kind");
        assert_eq!(map(SIZE, KIND, RuntimeId(8)), "runtime");
        region
            .view::<AtomicU32>(8)
            .unwrap()
            .store(99, Ordering::Relaxed);
        assert_eq!(map(SIZE, KIND, RUNTIME), "layout version");
        region
            .view::<AtomicU64>(0)
            .unwrap()
            .store(0, Ordering::Relaxed);
        assert_eq!(map(SIZE, KIND, RUNTIME), "magic");
    }
}

#[test]
#[cfg_attr(miri, ignore = "no files")]
fn a_file_is_made_once_and_where_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("region");
    let first = Region::create_in_file(&path, KIND, RUNTIME, SIZE).unwrap();
    let again = Region::create_in_file(&path, KIND, RUNTIME, SIZE).unwrap_err();
    assert!(again.to_string().contains("exists"), "{again}");
    let nowhere = folder.path().join("no/such/folder");
    let error = Region::create_in_file(&nowhere, KIND, RUNTIME, SIZE).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
    assert_eq!(
        std::fs::metadata(&path).unwrap().len(),
        first.size(),
        "sparse, of its full size"
    );
}

/// Larger than any file system's files, and on one that is full: an error that names the file, which is gone again.
#[test]
#[cfg_attr(miri, ignore = "no files")]
fn a_file_that_cannot_be_as_large_leaves_nothing() {
    const FULL: &str = "DRAGON_TEST_FULL_FOLDER";
    if let Some(full) = std::env::var_os(FULL) {
        return is_refused(&Path::new(&full).join("region"), SIZE);
    }
    let folder = tempfile::tempdir().unwrap();
    is_refused(
        &folder.path().join("region"),
        i64::MAX.cast_unsigned() & !4095,
    );
    // A file system of one page, which is used: mounted where nobody else sees it.
    let mount = "mount -t tmpfs -o size=4k none \"$0\" && echo x > \"$0/x\" && exec \"$@\"";
    let status = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", mount])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "region::tests::a_file_that_cannot_be_as_large_leaves_nothing",
        ])
        .env(FULL, folder.path())
        .status();
    match status.map(|status| status.code()) {
        Ok(Some(0)) => {}
        // Of unshare and of mount, where they are not allowed.
        Ok(Some(1 | 32)) | Err(_) => println!("SKIPPED a full file system"),
        other => panic!("on a full file system: {other:?}"),
    }
}

fn is_refused(path: &Path, size: u64) {
    let error = Region::create_in_file(path, KIND, RUNTIME, size).unwrap_err();
    assert!(error.to_string().contains("region"), "{error}");
    assert!(!path.exists(), "{error}");
}

#[test]
#[cfg_attr(miri, ignore = "no NUMA nodes")]
fn memory_comes_from_the_numa_node_that_was_asked_for() {
    for region in all() {
        match region.bind(0) {
            Ok(()) => region.commit(0, SIZE).unwrap(),
            Err(error) => println!("SKIPPED node 0 with {:?}: {error}", region.backing()),
        }
        let error = region.bind(999).unwrap_err();
        assert!(
            matches!(error, Error::NoSuchNumaNode { node: 999, .. }),
            "{error}"
        );
        assert!(region.bind(u32::MAX).is_err());
    }
}

#[test]
#[cfg_attr(miri, ignore = "no huge pages")]
fn what_was_obtained_of_huge_pages_is_told() {
    let region = Region::create("test", KIND, RUNTIME, 8 << 20).unwrap();
    if let Err(error) = region.advise_huge() {
        println!("SKIPPED huge pages: {error}");
        return;
    }
    assert_eq!(region.huge_bytes().unwrap(), 0, "nothing is touched yet");
    region.commit(0, region.size()).unwrap();
    region.populate(0, region.size()).unwrap();
    let obtained = region.huge_bytes().unwrap();
    println!("{obtained} of {} bytes in huge pages", region.size());
    assert!(obtained <= region.size());
}

#[test]
fn what_was_never_written_is_not_looked_at() {
    for region in all() {
        let everything = region.backing() == Backing::Heap;
        region.copy_in(SIZE / 2, &[1]).unwrap();
        let parts = region.written(0, SIZE);
        let has = |at: u64| parts.iter().any(|part| part.contains(&at));
        assert!(has(0) && has(SIZE / 2), "{parts:?}");
        assert_eq!(has(SIZE - 1), everything, "{parts:?}");
        assert_eq!(
            region.written(SIZE / 2 + (64 << 10), SIZE).is_empty(),
            !everything
        );
        assert!(parts.iter().all(|part| part.end <= SIZE), "{parts:?}");
    }
}
