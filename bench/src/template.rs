//! Configuration files with `{{name}}` placeholders.

use anyhow::{Context, Result, ensure};

/// Fills every placeholder of `template`. Fails on a placeholder without a value and on a value without a placeholder,
/// because each is a mistake in one of the two.
pub(crate) fn render(template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut rendered = String::with_capacity(template.len());
    let mut used = vec![false; values.len()];
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) = after.split_once("}}").context("a placeholder is not closed")?;
        let index = values
            .iter()
            .position(|(known, _)| *known == name)
            .with_context(|| format!("no value for {name}"))?;
        used[index] = true;
        rendered += before;
        rendered += &values[index].1;
        rest = after;
    }
    rendered += rest;
    for ((name, _), used) in values.iter().zip(used) {
        ensure!(used, "no placeholder for {name}");
    }
    Ok(rendered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_filled_as_often_as_it_occurs() {
        let values = [("port", "80".to_owned()), ("host", "a".to_owned())];
        let rendered = render("listen {{host}}:{{port}}; # {{port}} { }", &values).unwrap();
        assert_eq!(rendered, "listen a:80; # 80 { }");
    }

    #[test]
    fn a_place_without_a_value_and_a_value_without_a_place_are_errors() {
        assert_eq!(render("{{port}}", &[]).unwrap_err().to_string(), "no value for port");
        assert_eq!(
            render("", &[("port", String::new())]).unwrap_err().to_string(),
            "no placeholder for port"
        );
        assert_eq!(render("{{port", &[]).unwrap_err().to_string(), "a placeholder is not closed");
    }
}
