//! The interfaces of this machine, as the kernel tells them to a process of this network namespace. `/sys` may belong to
//! another one.

use core::ffi::CStr;
use core::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{Class, Interface, InterfaceError};

/// Lists the interfaces of this machine, in the kernel's order.
///
/// # Errors
/// When the system does not tell.
pub fn list() -> Result<Vec<Interface>, InterfaceError> {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None);
    let socket = socket.or_else(|_| {
        rustix::net::socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)
    });
    let socket = socket.map_err(|e| InterfaceError::List(e.into()))?;
    let mut all: Vec<Interface> = Vec::new();
    let addresses = Addresses::get().map_err(InterfaceError::List)?;
    for (name, flags, address, bits) in addresses.iter() {
        let known = all.iter().position(|i| i.name == name);
        let at = known.unwrap_or_else(|| {
            all.push(interface(&socket, name, flags));
            all.len() - 1
        });
        all[at].addresses.extend(address);
        all[at].prefixes.extend(address.map(|_| bits));
    }
    Ok(all)
}

fn interface(socket: &OwnedFd, name: String, flags: u32) -> Interface {
    let is = |flag: libc::c_int| flags & flag.unsigned_abs() != 0;
    let driver = driver(socket, &name);
    let class = if is(libc::IFF_LOOPBACK) {
        Class::Loopback
    } else {
        class(
            &name,
            driver.as_ref().map(|(d, b)| (d.as_str(), b.as_str())),
        )
    };
    Interface {
        up: is(libc::IFF_UP) && is(libc::IFF_RUNNING),
        class,
        speed: speed(socket, &name),
        addresses: Vec::new(),
        prefixes: Vec::new(),
        name,
    }
}

/// What container engines and hypervisors call the interfaces that they make.
const CONTAINER: [&str; 20] = [
    "docker", "br-", "cni", "virbr", "veth", "podman", "lxcbr", "lxdbr", "incusbr", "flannel",
    "cali", "cilium", "kube", "vmnet", "vboxnet", "weave", "nerdctl", "tap", "vnet", "dummy",
];

/// What kind of interface this is. `driver`: the driver's name and the bus address of its device, where it tells.
pub(super) fn class(name: &str, driver: Option<(&str, &str)>) -> Class {
    if CONTAINER.iter().any(|prefix| name.starts_with(prefix)) {
        return Class::Container;
    }
    match driver {
        Some(("bridge" | "openvswitch", _)) => Class::Bridge,
        Some(("veth" | "tun" | "dummy" | "vxlan" | "geneve" | "wireguard", _)) | None => {
            Class::Virtual
        }
        Some((driver, bus)) => {
            let over_an_adapter = ["bonding", "team", "802.1Q", "ib_ipoib", "macvlan", "ipvlan"];
            let over = over_an_adapter
                .iter()
                .any(|known| driver.starts_with(known));
            let has_device = !bus.is_empty() && bus != "N/A";
            if over || has_device {
                Class::Adapter
            } else {
                Class::Virtual
            }
        }
    }
}

/// `struct ethtool_drvinfo` of the kernel's interface, as far as it is of interest.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

/// `struct ethtool_cmd` of the kernel's interface.
#[repr(C)]
struct Settings {
    command: u32,
    supported: u32,
    advertising: u32,
    speed_low: u16,
    between: [u8; 14],
    speed_high: u16,
    rest: [u8; 14],
}

const ETHTOOL_GSET: u32 = 1;
const ETHTOOL_GDRVINFO: u32 = 3;
const SIOCETHTOOL: libc::c_ulong = 0x8946;

const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<Settings>() == 44);

fn driver(socket: &OwnedFd, name: &str) -> Option<(String, String)> {
    let mut info = DriverInfo {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rest: [0; 64],
    };
    // SAFETY: GDRVINFO writes a structure of this size and layout.
    unsafe { ethtool(socket, name, (&raw mut info).cast()) }?;
    let text = |bytes: &[u8; 32]| {
        let text = CStr::from_bytes_until_nul(bytes).ok()?;
        Some(text.to_string_lossy().into_owned())
    };
    Some((text(&info.driver)?, text(&info.bus)?))
}

fn speed(socket: &OwnedFd, name: &str) -> Option<u32> {
    let mut settings = Settings {
        command: ETHTOOL_GSET,
        supported: 0,
        advertising: 0,
        speed_low: 0,
        between: [0; 14],
        speed_high: 0,
        rest: [0; 14],
    };
    // SAFETY: GSET writes a structure of this size and layout.
    unsafe { ethtool(socket, name, (&raw mut settings).cast()) }?;
    let speed = u32::from(settings.speed_high) << 16 | u32::from(settings.speed_low);
    let known = speed != 0 && speed != u32::MAX && speed != u32::from(u16::MAX);
    known.then_some(speed)
}

/// # Safety
/// `data` must point to the structure that its first word, the command, stands for.
unsafe fn ethtool(socket: &OwnedFd, name: &str, data: *mut libc::c_char) -> Option<()> {
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = data;
    // SAFETY: the request names an interface, and the caller vouches for the data.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    (result == 0).then_some(())
}

/// The kernel's list, freed when it is dropped.
struct Addresses(*mut libc::ifaddrs);

impl Addresses {
    fn get() -> std::io::Result<Self> {
        let mut first = MaybeUninit::uninit();
        // SAFETY: getifaddrs writes the pointer when it succeeds.
        let result = unsafe { libc::getifaddrs(first.as_mut_ptr()) };
        if result != 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: it succeeded.
        Ok(Self(unsafe { first.assume_init() }))
    }

    fn iter(&self) -> impl Iterator<Item = (String, u32, Option<IpAddr>, u8)> + '_ {
        let mut next = self.0;
        core::iter::from_fn(move || {
            // SAFETY: null, or an entry of the list, which lives as long as `self`.
            let entry = unsafe { next.as_ref() }?;
            next = entry.ifa_next;
            // SAFETY: the name of an entry is a C string that lives as long as the list.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            let name = name.to_string_lossy().into_owned();
            // SAFETY: null, or an address of the family that it says.
            let address = unsafe { address(entry.ifa_addr) };
            // SAFETY: likewise.
            let mask = unsafe { self::address(entry.ifa_netmask) };
            let bits = mask.map_or(0, |mask| match mask {
                IpAddr::V4(v4) => v4.to_bits().leading_ones(),
                IpAddr::V6(v6) => v6.to_bits().leading_ones(),
            });
            Some((
                name,
                entry.ifa_flags,
                address,
                u8::try_from(bits).unwrap_or(0),
            ))
        })
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: the list came from getifaddrs and is freed once.
        unsafe { libc::freeifaddrs(self.0) };
    }
}

/// # Safety
/// `address` must be null, or point to an address structure as long as its family says.
unsafe fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: as the caller promises.
    let family = i32::from(unsafe { address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: an address of this family; it may lie at any boundary.
            let v4: libc::sockaddr_in =
                unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: an address of this family; it may lie at any boundary.
            let v6: libc::sockaddr_in6 =
                unsafe { address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}
