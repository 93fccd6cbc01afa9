//! Parsers of replies of registries and of input by users accept any text without a panic.

use proptest::prelude::*;

use crate::challenge::Challenge;
use crate::config::{hosts, registries::Registries};
use crate::credentials::parses_login;
use crate::environment::ProcessEnvironment;
use crate::{proxy, retry, url};

proptest! {
    #[test]
    fn server_headers_do_not_panic(text in "(Bearer|Basic)? ?([a-z]+=\"?[a-z:/,\\\\\"é]*\"?,? ?){0,4}\\PC{0,20}") {
        let _ = Challenge::preferred([text.as_str()]);
        let _ = retry::retry_after(&text);
        let _ = url::resolve("https://a.io/b?c", &text);
        let _ = url::resolve(&text, "/x");
    }

    #[test]
    fn user_settings_do_not_panic(text in "(\\[+[a-z.\"]{0,20}\\]+\n)?([a-z-]{1,12} = (\"[a-z./:*]{0,12}\"|true|\\[\\])\n){0,5}\\PC{0,10}") {
        let mut all = Registries::default();
        if all.add(&text, std::path::Path::new("f")).is_ok() {
            let _ = all.rule("a.io:5000", "b/c");
        }
        let _ = hosts::parse(&text, "a.io", std::path::Path::new("d"));
    }

    #[test]
    fn no_proxy_values_do_not_panic(rules in "\\PC{0,30}", host in "[a-z0-9.:\\[\\]]{0,20}") {
        let variables = [("https_proxy", "p:1"), ("no_proxy", rules.as_str())];
        let _ = proxy::proxy_for(&ProcessEnvironment::of(variables, std::path::Path::new("/")), "https", &host, 443);
    }

    #[test]
    fn login_files_do_not_panic(text in "\\{\"auths\": ?\\{\"[a-z./:]{0,12}\": ?\\{(\"auth\": ?\"[a-zA-Z0-9=]{0,12}\")?\\}\\}\\}|\\PC{0,40}") {
        let _ = parses_login(&text, "a.io", "b/c");
    }
}
