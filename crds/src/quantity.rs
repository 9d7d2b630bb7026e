//! Container resources and quantities, as Kubernetes defines them.

/// The resources that a container can request and be limited in.
pub const CONTAINER_RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Whether a text is a non-negative Kubernetes quantity: a decimal number, then a suffix or an exponent.
pub fn is_quantity(text: &str) -> bool {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let is_number = number.bytes().any(|byte| byte.is_ascii_digit()) && number.matches('.').count() <= 1;
    let is_exponent = || {
        let exponent = suffix.strip_prefix(['e', 'E']).unwrap_or_default();
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let suffixes = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    is_number && (suffixes.contains(&suffix) || is_exponent())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for text in ["0", "1", "100m", "64Mi", "1.5e3", ".5", "1E", "2e-1"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", "much", "-1", ".", "1e", "1 Gi", "1gi", "1.2.3"] {
            assert!(!is_quantity(text), "{text}");
        }
    }
}
