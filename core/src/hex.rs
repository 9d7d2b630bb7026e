//! Hexadecimal text for fingerprints, serial numbers and versions.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Encodes bytes as two lower-case digits each.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_two_lower_case_digits() {
        assert_eq!(hex(&[0x00, 0x0a, 0xc6, 0xff]), "000ac6ff");
        assert_eq!(hex(&[]), "");
    }
}
