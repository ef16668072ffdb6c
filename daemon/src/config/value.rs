//! The kinds of values that settings have: how they are written, and what is refused.

use std::fmt;
use std::time::Duration;

/// What a setting holds, with its limits.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Text that a function of its own checks.
    Text(fn(&str) -> Result<(), String>),
    /// `true` or `false`.
    Switch,
    /// A whole number.
    Whole {
        /// The least one.
        least: u64,
        /// The largest one.
        most: u64,
        /// What it counts.
        unit: &'static str,
    },
    /// A number of bytes, or one with K, M, G or T.
    Size {
        /// The least number of bytes.
        least: u64,
    },
    /// A span of time: `1h30m`, `90` (seconds), `2-00:30:00`.
    Time,
    /// A port, or a range of ports.
    Ports,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// A value of one of the kinds. Its text is what [`Kind::parse`] reads as the same value again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text, or a word.
    Text(String),
    /// On or off.
    Switch(bool),
    /// A whole number.
    Whole(u64),
    /// Bytes.
    Size(u64),
    /// A span of time.
    Time(Duration),
    /// The first and the last port.
    Ports(u16, u16),
}

/// The longest span of time: a year.
const LONGEST: u64 = 366 * 24 * 3600;

impl Kind {
    /// Reads a value.
    ///
    /// # Errors
    /// A sentence with the text, the limits, and what is wanted instead.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::Text(check) => check(text).map(|()| Value::Text(text.to_owned())),
            Self::Switch => match text {
                "1" | "true" | "yes" | "on" => Ok(Value::Switch(true)),
                "0" | "false" | "no" | "off" => Ok(Value::Switch(false)),
                _ => Err(format!("'{text}' is neither true nor false")),
            },
            Self::Whole { least, most, unit } => {
                let number = text.parse().ok();
                let number = number.filter(|number| (least..=most).contains(&number));
                number.map(Value::Whole).ok_or_else(|| {
                    format!("'{text}' is no whole number of {unit} from {least} to {most}")
                })
            }
            Self::Size { least } => size(text, *least).map(Value::Size),
            Self::Time => span(text).map(Value::Time),
            Self::Ports => ports(text).map(|(first, last)| Value::Ports(first, last)),
            Self::Word(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Self::Word(words) => Err(format!("'{text}' is none of {}", words.join(", "))),
        }
    }

    /// The limits, for people.
    #[must_use]
    pub fn limits(&self) -> String {
        match self {
            Self::Text(_) => "text".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::Whole { least, most, unit } => format!("{unit}, {least} to {most}"),
            Self::Size { least } => {
                let least = Value::Size(*least);
                format!("bytes, or with K, M, G, T; {least} or more")
            }
            Self::Time => "a time like 90 (seconds), 1h30m or 2-00:30:00".to_owned(),
            Self::Ports => "a port or a range FIRST-LAST, 1 to 65535".to_owned(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Switch(on) => write!(f, "{on}"),
            Self::Whole(number) => write!(f, "{number}"),
            Self::Size(bytes) => {
                let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
                let whole = |(shift, _): &(u32, &str)| *bytes > 0 && bytes % (1 << shift) == 0;
                match units.into_iter().find(whole) {
                    Some((shift, unit)) => write!(f, "{}{unit}", bytes >> shift),
                    None => write!(f, "{bytes}"),
                }
            }
            Self::Time(span) => {
                let seconds = span.as_secs();
                let parts = [
                    (seconds / 3600, "h"),
                    (seconds / 60 % 60, "m"),
                    (seconds % 60, "s"),
                ];
                if seconds == 0 {
                    return f.write_str("0s");
                }
                for (number, unit) in parts.into_iter().filter(|(number, _)| *number > 0) {
                    write!(f, "{number}{unit}")?;
                }
                Ok(())
            }
            Self::Ports(first, last) if first == last => write!(f, "{first}"),
            Self::Ports(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// Reads a size: a number of bytes, or one with K, M, G or T (powers of 1024).
fn size(text: &str, least: u64) -> Result<u64, String> {
    let bad = || format!("'{text}' is not a size like 512M or 8G");
    let upper = text.trim().to_ascii_uppercase();
    let digits = upper.trim_end_matches('B').trim_end_matches('I');
    let shift = match digits.chars().last() {
        Some('K') => 10,
        Some('M') => 20,
        Some('G') => 30,
        Some('T') => 40,
        _ => 0,
    };
    let number = match shift {
        0 => digits,
        _ => &digits[..digits.len() - 1],
    };
    let bytes = number.parse::<u64>().map_err(|_| bad())?;
    let bytes = bytes.checked_mul(1 << shift).ok_or_else(bad)?;
    if bytes < least {
        let least = Value::Size(least);
        return Err(format!("{text} is below the minimum of {least}"));
    }
    Ok(bytes)
}

/// Reads a span of time in one of three forms: seconds, numbers with units, days and a clock as Slurm has it.
fn span(text: &str) -> Result<Duration, String> {
    let bad =
        || format!("'{text}' is no time like 90 (seconds), 1h30m or 2-00:30:00 (days-hh:mm:ss)");
    let seconds = match () {
        () if text.contains([':', '-']) => clock(text),
        () if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        () => with_units(text),
    };
    match seconds.ok_or_else(bad)? {
        0 => Err(format!("'{text}' is no time at all; the least is 1s")),
        seconds if seconds > LONGEST => Err(format!("'{text}' is more than 366 days")),
        seconds => Ok(Duration::from_secs(seconds)),
    }
}

/// `mm:ss`, `hh:mm:ss`, `d-hh`, `d-hh:mm`, `d-hh:mm:ss`.
fn clock(text: &str) -> Option<u64> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u64>().ok()).flatten()
    };
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts = rest.split(':').map(number).collect::<Option<Vec<_>>>()?;
    let (hours, minutes, seconds) = match (days, parts[..].as_ref()) {
        (Some(_), &[hours]) => (hours, 0, 0),
        (Some(_), &[hours, minutes]) => (hours, minutes, 0),
        (None, &[minutes, seconds]) => (0, minutes, seconds),
        (_, &[hours, minutes, seconds]) => (hours, minutes, seconds),
        _ => return None,
    };
    let within = days.is_none_or(|_| hours < 24) && seconds < 60;
    let days = days.unwrap_or(0).checked_mul(24)?;
    let hours = days.checked_add(hours)?;
    let minutes = hours.checked_mul(60)?.checked_add(minutes)?;
    let all = minutes.checked_mul(60)?.checked_add(seconds)?;
    within.then_some(all)
}

/// `1h30m`, `2d`, `45s`: each unit once, the largest first.
fn with_units(text: &str) -> Option<u64> {
    let units = [('d', 86400), ('h', 3600), ('m', 60), ('s', 1)];
    let (mut all, mut rest, mut from) = (0_u64, text, 0);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..end].parse().ok()?;
        let unit = rest[end..].chars().next()?;
        let place = units.iter().position(|(name, _)| *name == unit)?;
        if place < from {
            return None;
        }
        from = place + 1;
        all = all.checked_add(number.checked_mul(units[place].1)?)?;
        rest = &rest[end + unit.len_utf8()..];
    }
    Some(all)
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let bad = || format!("'{text}' is neither a port from 1 to 65535 nor a range like 20000-32000");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port > 0);
    let range = port(first).zip(port(last));
    range.filter(|(first, last)| first <= last).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [(&str, u64); 10] = [
        ("90", 90),
        ("1h30m", 5400),
        ("45s", 45),
        ("2d", 2 * 86400),
        ("1d2h3m4s", 93784),
        ("05:30", 330),
        ("1:00:00", 3600),
        ("100:00:00", 360_000),
        ("2-12", 60 * 3600),
        ("1-00:30:15", 86400 + 1815),
    ];

    #[test]
    fn times_in_every_form() {
        for (text, seconds) in TIMES {
            assert_eq!(span(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        let bad = [
            "",
            "h",
            "1x",
            "30m1h",
            "1h1h",
            "-1",
            "1-",
            "1-25:00",
            "1:2:3:4",
            "1:60",
            "0",
            "1.5h",
            "400d",
            "99999999999999999999",
            "1-24",
            "+5",
            "1:+2",
        ];
        for text in bad {
            let why = span(text).unwrap_err();
            assert!(why.contains(&format!("'{text}'")), "{why}");
        }
    }

    #[test]
    fn sizes() {
        let least = 4 << 20;
        assert_eq!(size("8G", least), Ok(8 << 30));
        assert_eq!(size("64MiB", least), Ok(64 << 20));
        assert_eq!(size("5000000", least), Ok(5_000_000));
        for bad in ["", "G", "-1", "1K", "8GG", "99999999999T"] {
            assert!(size(bad, least).is_err(), "{bad}");
        }
        assert!(size("1K", least).unwrap_err().contains("minimum of 4M"));
    }

    #[test]
    fn ports_are_one_or_a_range() {
        assert_eq!(ports("7575"), Ok((7575, 7575)));
        assert_eq!(ports("20000-32000"), Ok((20000, 32000)));
        for bad in ["0", "2-1", "1-65536", "a", "1-2-3", ""] {
            assert!(ports(bad).unwrap_err().contains("65535"), "{bad}");
        }
    }

    #[test]
    fn the_text_of_a_value_is_read_as_the_same_value() {
        let size = Kind::Size { least: 1 };
        let table = [
            (size, "6M"),
            (size, "5000000"),
            (Kind::Ports, "20-30"),
            (Kind::Ports, "7"),
            (Kind::Switch, "yes"),
        ];
        let times = TIMES.map(|(text, _)| (Kind::Time, text));
        for (kind, text) in table.into_iter().chain(times) {
            let value = kind.parse(text).unwrap();
            assert_eq!(kind.parse(&value.to_string()).unwrap(), value, "{text}");
        }
    }
}
