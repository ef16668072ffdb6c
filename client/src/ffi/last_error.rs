//! The text of the last failure, per thread. It is only written out when somebody asks: many failures are an empty
//! channel or a deadline.

use std::cell::RefCell;
use std::ffi::{CString, c_char};

use dragon_protocol::Code;

use crate::error::Error;

#[derive(Debug)]
struct Last {
    error: Option<Error>,
    text: Option<CString>,
}

thread_local! {
    static LAST: RefCell<Last> = const { RefCell::new(Last { error: None, text: None }) };
}

/// Keeps the error of this thread; returns its code.
#[cold]
pub(super) fn set(error: Error) -> i32 {
    let code = match error.code() {
        // An error is never success.
        Code::Ok => Code::Corrupt,
        code => code,
    };
    // A thread that is ending may have lost the place; the code tells enough then.
    let _ = LAST.try_with(|last| {
        if let Ok(mut last) = last.try_borrow_mut() {
            *last = Last {
                error: Some(error),
                text: None,
            };
        }
    });
    code.to_i32()
}

/// See `dragon.h`.
#[unsafe(no_mangle)]
pub extern "C" fn dragon_last_error() -> *const c_char {
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
