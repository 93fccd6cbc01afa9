//! Progress for programs: one JSON document per line, as `docker buildx build --progress rawjson`
//! writes it. A vertex is a step or other work; its output is in base64.

use std::collections::HashMap;

use crate::progress::task::TaskId;
use crate::ui::terminal;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rbuild_engine::{Event, StepOutcome};
use rbuild_sandbox::Stream;
use serde_json::{Value, json};

rbuild_image::id_type! {
    /// Identifier of a vertex in the documents.
    digest VertexDigest;
}

#[derive(Default)]
pub struct Documents {
    tasks: HashMap<TaskId, ProgressVertex>,
    count: usize,
}

#[derive(Clone)]
struct ProgressVertex {
    digest: VertexDigest,
    name: String,
    started: String,
}

impl ProgressVertex {
    fn json(&self) -> Value {
        json!({"digest": self.digest, "name": self.name, "started": self.started})
    }
}

impl Documents {
    /// Returns the line for an event; empty for events without one. `now` is in RFC 3339.
    pub fn line(&mut self, event: Event, now: &str) -> String {
        let document = match event {
            Event::Isolation { mode } => self.note(&format!("isolation: {mode}"), now),
            Event::Warning(w) => return terminal::warning_document(&terminal::warning_line(&w)),
            Event::Phase { text, .. } => self.note(&text, now),
            Event::Started { step, label, text } => {
                let name = format!("[{label}] {}", text.lines().next().unwrap_or_default());
                self.started(TaskId::Step(step), &name, now)
            }
            Event::PhaseStarted { phase, text, .. } => self.started(TaskId::Phase(phase), &text, now),
            Event::PhaseEnded { phase, seconds } => {
                let Some(vertex) = self.tasks.get(&TaskId::Phase(phase)) else { return String::new() };
                let mut ended = vertex.json();
                ended["completed"] = json!(now);
                if seconds.is_none() {
                    ended["error"] = json!("canceled");
                }
                json!({"vertexes": [ended]})
            }
            Event::Output { step, stream, bytes } => {
                let Some(vertex) = self.tasks.get(&TaskId::Step(step)) else { return String::new() };
                let stream = if stream == Stream::Stdout { 1 } else { 2 };
                let data = STANDARD.encode(&*bytes);
                json!({"logs": [{"vertex": vertex.digest, "stream": stream, "data": data, "timestamp": now}]})
            }
            Event::Done { step, outcome, .. } => {
                let Some(vertex) = self.tasks.get(&TaskId::Step(step)) else { return String::new() };
                let mut ended = vertex.json();
                ended["completed"] = json!(now);
                match outcome {
                    StepOutcome::Done => {}
                    StepOutcome::Cached => ended["cached"] = json!(true),
                    StepOutcome::Failed => ended["error"] = json!("the step failed"),
                    StepOutcome::Canceled => ended["error"] = json!("canceled"),
                }
                json!({"vertexes": [ended]})
            }
            // The format has no field for the reason, so it is a warning of the lowest level.
            Event::Reason { step, text } => {
                let Some(vertex) = self.tasks.get(&TaskId::Step(step)) else { return String::new() };
                let note = STANDARD.encode(format!("why: {text}"));
                json!({"warnings": [{"vertex": vertex.digest, "level": 0, "short": note}]})
            }
            Event::Waiting { .. }
            | Event::Total { .. }
            | Event::Moving { .. }
            | Event::Pulling { .. }
            | Event::Failed
            | Event::Interrupted => return String::new(),
        };
        format!("{document}\n")
    }

    /// Returns the document for a task that starts.
    fn started(&mut self, id: TaskId, name: &str, now: &str) -> Value {
        let vertex = self.vertex(name, now);
        let document = json!({"vertexes": [vertex.json()]});
        self.tasks.insert(id, vertex);
        document
    }

    fn vertex(&mut self, name: &str, now: &str) -> ProgressVertex {
        self.count += 1;
        let digest = VertexDigest::of(format!("{} {name}", self.count).as_bytes());
        ProgressVertex { digest, name: name.to_string(), started: now.to_string() }
    }

    /// Returns the document for work that is already complete.
    fn note(&mut self, text: &str, now: &str) -> Value {
        let mut vertex = self.vertex(text, now).json();
        vertex["completed"] = json!(now);
        json!({"vertexes": [vertex]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_document_and_logs_refer_to_their_vertex() {
        let mut documents = Documents::default();
        let events = [
            Event::Isolation { mode: "userns" },
            Event::Started { step: 4, label: "a 1/2".into(), text: "RUN x\ny".into() },
            Event::Output { step: 4, stream: Stream::Stderr, bytes: "hello\n".into() },
            Event::Done { step: 4, outcome: StepOutcome::Cached, seconds: 0.0 },
        ];
        let lines: Vec<Value> = events
            .into_iter()
            .map(|e| serde_json::from_str(&documents.line(e, "2026-01-01T00:00:00Z")).unwrap())
            .collect();
        let started = &lines[1]["vertexes"][0];
        assert_eq!((started["name"].as_str(), started["completed"].as_str()), (Some("[a 1/2] RUN x"), None));
        let log = &lines[2]["logs"][0];
        assert_eq!(log["vertex"], started["digest"]);
        assert_eq!((log["stream"].as_i64(), log["data"].as_str()), (Some(2), Some("aGVsbG8K")));
        assert_eq!(lines[3]["vertexes"][0]["cached"], json!(true));
    }

    #[test]
    fn documents_are_as_recorded() {
        let mut documents = Documents::default();
        let mut events = vec![
            Event::Isolation { mode: "userns" },
            Event::Phase { text: "packing layers".into(), seconds: 1.0 },
            Event::Warning("a warning".into()),
            Event::PhaseStarted { phase: 0, text: "writing files".into(), meter: Default::default() },
            Event::PhaseEnded { phase: 0, seconds: Some(1.0) },
        ];
        for (step, outcome) in
            [StepOutcome::Done, StepOutcome::Cached, StepOutcome::Failed, StepOutcome::Canceled].into_iter().enumerate()
        {
            events.push(Event::Started { step, label: format!("{step}/4"), text: "RUN x\ny".into() });
            events.push(Event::Output { step, stream: Stream::Stdout, bytes: "hello\n".into() });
            events.push(Event::Reason { step, text: "the command changed".into() });
            events.push(Event::Done { step, outcome, seconds: 1.0 });
        }
        let text: String = events.into_iter().map(|event| documents.line(event, "2026-01-01T00:00:00Z")).collect();
        rbuild_testkit::assert_recorded!("progress-rawjson", text);
    }
}
