//! COPY and ADD.

use rbuild_dockerfile::ast;
use rbuild_dockerfile::expand::Lexer;
use rbuild_dockerfile::{Diagnostic, Span};

use super::{Planned, Planner, State, join, not_yet};
use crate::graph::{CopyStep, From as Input, InlineFile, Step};
use crate::history;

impl Planner<'_> {
    pub(super) fn copy(&mut self, state: &mut State, copy: &ast::Copy, span: Span) -> Planned<()> {
        let name = if copy.add { "ADD" } else { "COPY" };
        let later = [
            ("--link", &copy.link),
            ("--parents", &copy.parents),
            ("--exclude", &copy.exclude.first().cloned()),
            ("--checksum", &copy.checksum),
            ("--keep-git-dir", &copy.keep_git_dir),
        ];
        for (flag, word) in later {
            if let Some(word) = word {
                return Err(not_yet(word.span, &format!("{name} {flag}")).into());
            }
        }
        let from = match &copy.from {
            None => Input::Context,
            Some(word) if word.text.contains('$') => {
                let d = Diagnostic::new(word.span, "--from takes no variables");
                return Err(d.help("define a stage `FROM $NAME AS x` and use `--from=x`").into());
            }
            Some(word) => self.input_named(&word.text, word.span)?,
        };
        let sources = self.words(state, &copy.sources)?;
        for (source, word) in sources.iter().zip(&copy.sources) {
            let remote = ["http://", "https://", "git://", "git@", "ssh://"].iter().any(|p| source.starts_with(p));
            if remote && copy.add {
                return Err(not_yet(word.span, "ADD of a URL").into());
            }
            if remote {
                let d = Diagnostic::new(word.span, "COPY takes files of the context, not a URL");
                return Err(d.help("use ADD for URLs").into());
            }
        }
        let dest = self.word(state, &copy.dest)?;
        let dest_is_dir = dest.is_empty() || dest == "." || dest.ends_with('/') || dest.ends_with("/.");
        if sources.len() + copy.heredocs.len() > 1 && !dest_is_dir {
            let d = Diagnostic::new(copy.dest.span, "with several sources the destination must be a directory");
            return Err(d.help(format!("end it with a slash: `{dest}/`")).into());
        }
        let chown = copy.chown.as_ref().map(|w| self.word(state, w)).transpose()?;
        let chmod_text = copy.chmod.as_ref().map(|w| self.word(state, w)).transpose()?;
        let chmod = match (&chmod_text, &copy.chmod) {
            (Some(text), Some(word)) => Some(chmod(text, word.span)?),
            _ => None,
        };
        let inline = self.inline_files(state, &copy.heredocs)?;
        let created_by =
            history::copy(copy.add, chown.as_deref(), chmod_text.as_deref(), &sources, &copy.heredocs, &dest);
        let mut text = created_by.trim_end_matches(" # buildkit").to_string();
        if let Some(from) = &copy.from {
            text = text.replacen(name, &format!("{name} --from={}", from.text), 1);
        }
        let step = CopyStep {
            from,
            sources,
            inline,
            dest: join(&state.config.config.working_dir, &dest),
            dest_is_dir,
            chown,
            chmod,
            unpack: copy.unpack.as_ref().map_or(copy.add, |w| w.text == "true"),
            source_spans: copy.sources.iter().map(|w| w.span).collect(),
        };
        self.step(state, Step::Copy(step), text, created_by, span);
        Ok(())
    }

    fn inline_files(&mut self, state: &State, docs: &[ast::Heredoc]) -> Planned<Vec<InlineFile>> {
        let lexer = Lexer { escape: '\\', raw_quotes: true, skip_unset: false };
        docs.iter()
            .map(|doc| {
                let content = if doc.expand {
                    let lookup = |name: &str| state.vars.get(name).map(str::to_string);
                    let got = lexer.word(&doc.body, &lookup);
                    got.map_err(|e| Diagnostic::new(doc.body_span, e.to_string()))?.text
                } else {
                    doc.body.clone()
                };
                Ok(InlineFile { name: doc.name.clone(), content })
            })
            .collect()
    }
}

fn chmod(text: &str, span: Span) -> Result<u32, Diagnostic> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        if let Some(mode) = u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777) {
            return Ok(mode);
        }
        let d = Diagnostic::new(span, format!("`{text}` is not a file mode"));
        return Err(d.help("give octal digits from 0 to 7777, for example 644"));
    }
    Err(not_yet(span, "a symbolic --chmod").help("give octal digits, for example --chmod=755"))
}
