//! The checksum of a JSON file of a run: the last key of its object, which covers all bytes in front
//! of it.

/// In front of the eight digits.
const BEFORE: &[u8] = b",\n  \"crc32\": \"";
/// Behind them.
const BEHIND: &[u8] = b"\"\n}\n";
/// Hexadecimal digits of a checksum.
const DIGITS: usize = 8;

/// Adds the checksum to an object in pretty form.
pub(super) fn seal_json(text: &mut Vec<u8>) {
    if let Some(content) = text.strip_suffix(b"\n}") {
        text.truncate(content.len());
        let sum = format!("{:08x}", crc32fast::hash(text));
        text.extend([BEFORE, sum.as_bytes(), BEHIND].concat());
    } else {
        text.push(b'\n');
    }
}

/// Whether the file is as it was written. Those of older versions have no checksum, and cannot be
/// told.
pub(super) fn is_json_whole(text: &[u8]) -> bool {
    let tail = BEFORE.len() + DIGITS + BEHIND.len();
    let Some((content, tail)) = text.split_at_checked(text.len().saturating_sub(tail)) else {
        return true;
    };
    // A damaged bit in the words around the digits leaves most of them.
    let same = |found: &[u8], wanted: &[u8]| {
        found.iter().zip(wanted).filter(|(found, wanted)| found == wanted).count()
    };
    let (before, rest) = tail.split_at(BEFORE.len().min(tail.len()));
    let (digits, behind) = rest.split_at(DIGITS.min(rest.len()));
    let words = BEFORE.len() + BEHIND.len();
    if same(before, BEFORE) + same(behind, BEHIND) + 1 < words {
        return true;
    }
    digits == format!("{:08x}", crc32fast::hash(content)).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damaged_bit_is_found() {
        let mut text = serde_json::to_vec_pretty(&serde_json::json!({"a": 1, "b": [2]})).unwrap();
        seal_json(&mut text);
        assert!(serde_json::from_slice::<serde_json::Value>(&text).unwrap()["crc32"].is_string());
        assert!(is_json_whole(&text) && is_json_whole(b"{\n  \"a\": 1\n}\n") && is_json_whole(b""));
        let words = text.len() - BEFORE.len() - DIGITS - BEHIND.len();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // Around the digits, the content is still what it was.
            let (index, digits) = (bit / 8, words + BEFORE.len());
            let found = !is_json_whole(&damaged);
            assert_eq!(found, index < words || (digits..digits + DIGITS).contains(&index), "{bit}");
        }
    }
}
