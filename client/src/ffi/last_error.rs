//! The text of the last failure, per thread. It is only written out when somebody asks: many failures are an empty
//! channel or a deadline.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char};

use dragon_channels as channels;
use dragon_protocol::Code;

use crate::error::Error;

#[derive(Debug)]
struct Last {
    error: Option<Error>,
    text: Option<CString>,
}

thread_local! {
    /// The last failure when it was of a kind that is no news: [`everyday`]. It costs two stores.
    static PLAIN: Cell<Option<&'static CStr>> = const { Cell::new(None) };
    /// The last one of any other kind.
    static LAST: RefCell<Last> = const { RefCell::new(Last { error: None, text: None }) };
}

/// Keeps the error of this thread; returns its code.
pub(super) fn set(error: Error) -> i32 {
    let plain = everyday(&error);
    PLAIN.set(plain);
    let code = error.code().to_i32();
    if plain.is_none() {
        keep(error);
    }
    // An error is never success.
    if code == 0 {
        Code::Corrupt.to_i32()
    } else {
        code
    }
}

/// The text of failures that programs make happen all the time.
fn everyday(error: &Error) -> Option<&'static CStr> {
    match error {
        Error::Channels(channels::Error::Empty) => Some(c"nothing is there yet"),
        Error::Channels(channels::Error::Full) => Some(c"the channel is full"),
        Error::Channels(channels::Error::Timeout) => Some(c"the deadline passed"),
        Error::Channels(channels::Error::Interrupted) => Some(c"a signal interrupted the wait"),
        _ => None,
    }
}

#[cold]
fn keep(error: Error) {
    // A thread that is ending may have lost the place; the code tells enough then.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Last {
                error: Some(error),
                text: None,
            };
        }
    });
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_last_error() -> *const c_char {
    if let Some(text) = PLAIN.get() {
        return text.as_ptr();
    }
    let text = |last: &RefCell<Last>| {
        let Ok(mut last) = last.try_borrow_mut() else {
            return c"".as_ptr();
        };
        let Last { error, text } = &mut *last;
        let Some(error) = error else {
            return c"".as_ptr();
        };
        text.get_or_insert_with(|| {
            let shown = error.to_string().replace('\0', "?");
            // There is no NUL left.
            CString::new(shown).unwrap_or_default()
        })
        .as_ptr()
    };
    LAST.try_with(text).unwrap_or(c"".as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> String {
        // SAFETY: the text of this thread's last error, valid until the next one.
        let text = unsafe { CStr::from_ptr(dragon_last_error()) };
        text.to_str().unwrap().to_owned()
    }

    #[test]
    fn the_last_failure_of_whatever_kind_is_told() {
        assert_eq!(text(), "");
        for everyday in [
            channels::Error::Empty,
            channels::Error::Full,
            channels::Error::Timeout,
            channels::Error::Interrupted,
        ] {
            let shown = everyday.to_string();
            let code = everyday.code().to_i32();
            assert_eq!(set(everyday.into()), code);
            assert_eq!(text(), shown);
        }
        assert_eq!(set(Error::NoRuntime), 16);
        assert!(text().contains("DRAGON_RUNTIME"), "{}", text());
        set(channels::Error::Empty.into());
        assert_eq!(text(), "nothing is there yet");
    }
}
