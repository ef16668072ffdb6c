//! From the bytes of a pipe to pieces that hold whole lines.

/// The longest line that is kept whole; a longer one is passed on in pieces.
pub(super) const LONGEST_LINE: usize = 64 << 10;
/// With labels a piece is passed on when it is so large.
const PIECE: usize = 64 << 10;

/// Puts lines together. A piece is never longer than two of the longest lines, a label and what was read at once.
pub(super) struct Lines {
    /// What stands before each line.
    label: Option<Vec<u8>>,
    /// The beginning of a line.
    rest: Vec<u8>,
}

impl Lines {
    pub(super) fn new(label: Option<Vec<u8>>) -> Self {
        Self {
            label,
            rest: Vec::new(),
        }
    }

    /// Takes bytes; returns the pieces that can be passed on. Without a label they are what came, byte for byte. With one, a
    /// line that is longer than the longest is broken into several.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let Some(label) = &self.label else {
            return self.plain(bytes).into_iter().collect();
        };
        let (mut pieces, mut piece) = (Vec::new(), Vec::new());
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(line);
            let whole = line.ends_with(b"\n");
            if !whole && self.rest.len() < LONGEST_LINE {
                break;
            }
            piece.extend_from_slice(label);
            piece.append(&mut self.rest);
            if !whole {
                piece.push(b'\n');
            }
            if piece.len() >= PIECE {
                pieces.push(std::mem::take(&mut piece));
            }
        }
        pieces.extend((!piece.is_empty()).then_some(piece));
        self.shrink();
        pieces
    }

    /// The pipe has ended: what is left is passed on as it is; with a label it becomes a line.
    pub(super) fn end(mut self) -> Option<Vec<u8>> {
        if self.rest.is_empty() {
            return None;
        }
        match self.label {
            None => Some(self.rest),
            Some(mut label) => {
                label.append(&mut self.rest);
                label.push(b'\n');
                Some(label)
            }
        }
    }

    fn plain(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(last) => last + 1,
            None if self.rest.len() + bytes.len() >= LONGEST_LINE => bytes.len(),
            None => {
                self.rest.extend_from_slice(bytes);
                return None;
            }
        };
        let mut piece = std::mem::take(&mut self.rest);
        piece.extend_from_slice(&bytes[..whole]);
        self.rest = bytes[whole..].to_vec();
        Some(piece)
    }

    /// A process that has nothing on its way needs no memory here.
    fn shrink(&mut self) {
        if self.rest.is_empty() {
            self.rest = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(label: Option<&str>, reads: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(label.map(|label| label.as_bytes().to_vec()));
        let mut pieces: Vec<_> = reads.iter().flat_map(|read| lines.push(read)).collect();
        pieces.extend(lines.end());
        let text = |piece: Vec<u8>| String::from_utf8(piece).unwrap();
        pieces.into_iter().map(text).collect()
    }

    #[test]
    fn lines_are_whole() {
        assert_eq!(all(None, &[b"a\nb", b"c\nd\n"]), ["a\n", "bc\nd\n"]);
        assert_eq!(all(None, &[b"ab", b"c"]), ["abc"]);
        assert_eq!(
            all(Some("3: "), &[b"a\n\nb", b"c\nd"]),
            ["3: a\n3: \n", "3: bc\n", "3: d\n"]
        );
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let half = "x".repeat(LONGEST_LINE / 2);
        let half = half.as_bytes();
        let pieces = all(None, &[half, half, half, b"\n"]);
        assert_eq!(
            pieces.iter().map(String::len).collect::<Vec<_>>(),
            [LONGEST_LINE, LONGEST_LINE / 2 + 1]
        );
        let pieces = all(Some("0: "), &[half, half, half, b"\n"]);
        let expected = [LONGEST_LINE, LONGEST_LINE / 2].map(|x| format!("0: {}\n", "x".repeat(x)));
        assert_eq!(pieces, expected);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_torn_or_too_long(
            reads in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300), 0..20),
        ) {
            let given = reads.concat();
            let mut lines = Lines::new(None);
            let mut pieces: Vec<_> = reads.iter().flat_map(|read| lines.push(read)).collect();
            for piece in &pieces {
                prop_assert!(piece.ends_with(b"\n"));
            }
            pieces.extend(lines.end());
            prop_assert_eq!(pieces.concat(), given.clone());

            let mut lines = Lines::new(Some(b"7: ".to_vec()));
            let mut pieces: Vec<_> = reads.iter().flat_map(|read| lines.push(read)).collect();
            pieces.extend(lines.end());
            let labelled: Vec<u8> = given
                .split_inclusive(|byte| *byte == b'\n')
                .flat_map(|line| [b"7: ", line.strip_suffix(b"\n").unwrap_or(line), b"\n"].concat())
                .collect();
            prop_assert_eq!(pieces.concat(), labelled);
        }
    }
}
