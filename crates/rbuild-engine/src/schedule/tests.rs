use rbuild_dockerfile::Span;
use rbuild_image::{ImageConfig, ManifestDigest, Platform};
use rbuild_paths::SourcePattern;
use rbuild_plan::{CopyItem, CopySource, CopyStep, StepName, Vertex};

use super::*;

fn v(position: usize) -> VertexId {
    VertexId::new(position)
}

fn vertex(step: Step, parent: Option<VertexId>) -> Vertex {
    let (text, span) = (String::new(), Span::default());
    let (name, word_spans) = (StepName::default(), Default::default());
    Vertex { step, parent, name, text, span, word_spans, ignore_cache: false, is_trigger: false }
}

fn image(name: &str) -> Vertex {
    let manifest = ManifestDigest::of(name.as_bytes());
    let (platform, diff_ids) = (Platform::host(), Vec::new());
    vertex(Step::Image { name: name.into(), manifest, platform, diff_ids }, None)
}

fn copy(parent: usize, from: FileSource, sources: &[&str]) -> Vertex {
    copy_of(parent, from, sources.iter().map(|source| SourcePattern::parse(source)))
}

fn copy_of(parent: usize, from: FileSource, patterns: impl Iterator<Item = SourcePattern>) -> Vertex {
    let sources =
        patterns.map(|pattern| CopySource { item: CopyItem::Files(pattern), span: Span::default() }).collect();
    vertex(Step::Copy(CopyStep { from, sources, ..CopyStep::default() }), Some(v(parent)))
}

/// Two stages: 0 image, 1 and 2 copies from the context; 3 scratch, 4 a copy of `/a` from the other
/// stage, 5 a copy from the context.
fn two_stages() -> BuildGraph {
    graph(vec![
        image("base"),
        copy(0, FileSource::Context, &["x"]),
        copy(1, FileSource::Context, &["y"]),
        vertex(Step::Scratch, None),
        copy(3, FileSource::Vertex(v(2)), &["/a"]),
        copy(4, FileSource::Context, &["z"]),
    ])
}

fn graph(vertices: Vec<Vertex>) -> BuildGraph {
    BuildGraph {
        target: v(vertices.len() - 1),
        vertices,
        config: ImageConfig::empty(&Platform::host()),
        history: Vec::new(),
        epoch: None,
        warnings: Vec::new(),
    }
}

/// Returns the vertices to run, each with its inputs, as `2<0,1>`.
fn shown(schedule: &Schedule) -> String {
    let one = |(id, inputs): (VertexId, &BTreeSet<VertexId>)| {
        let inputs: Vec<String> = inputs.iter().map(VertexId::to_string).collect();
        if inputs.is_empty() { id.to_string() } else { format!("{id}<{}>", inputs.join(",")) }
    };
    schedule.vertices().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn needed_uncached_vertices_run_after_their_inputs() {
    let graph = two_stages();
    for (open, exports_files, want) in [
        // All steps are cached: nothing runs, and no image is unpacked where the base is scratch.
        (&[][..], false, ""),
        (&[], true, ""),
        (&[1, 2, 4, 5], false, "0 1<0> 2<1> 4<2> 5<4>"),
        // Cached parents are skipped: the step depends on the image below.
        (&[2, 4, 5], false, "0 2<0> 4<2> 5<4>"),
        // A cached stage that is copied from needs its image.
        (&[4, 5], false, "0 4<0> 5<4>"),
        (&[5], false, "5"),
        (&[5], true, "5"),
        // An open step below a cached target is not needed.
        (&[1], false, ""),
    ] {
        let open: Vec<bool> = (0..graph.vertices.len()).map(|id| open.contains(&id)).collect();
        let schedule = Schedule::of(&graph, open.clone(), exports_files);
        assert_eq!(shown(&schedule), want, "{open:?} {exports_files}");
        assert_eq!(schedule.vertices().next().is_none(), want.is_empty());
        for (id, inputs) in schedule.vertices() {
            assert!(inputs.iter().all(|input| schedule.dependants(*input).contains(&id)));
        }
    }
}

/// 0 image, 1 and 2 linked copies of which one is from the context and one from another image (3),
/// 4 a copy that is not linked.
fn linked() -> BuildGraph {
    let link = |parent: usize, from| {
        let mut vertex = copy(parent, from, &["/a"]);
        if let Step::Copy(copy) = &mut vertex.step {
            copy.link = true;
        }
        vertex
    };
    graph(vec![
        image("base"),
        link(0, FileSource::Context),
        image("tools"),
        link(1, FileSource::Vertex(v(2))),
        copy(3, FileSource::Context, &["x"]),
    ])
}

#[test]
fn linked_copies_need_no_files_of_their_base() {
    for (target, open, exports_files, want) in [
        (3, &[1, 3][..], false, "1 2 3<1,2>"),
        (3, &[3], false, "2 3<2>"),
        (3, &[1, 3], true, "0 1 2 3<1,2>"),
        (3, &[], true, "0"),
        // Its base is needed as soon as a step reads the files.
        (4, &[1, 3, 4], false, "0 1 2 3<1,2> 4<0,1,3>"),
        (4, &[4], false, "0 4<0>"),
    ] {
        let graph = BuildGraph { target: v(target), ..linked() };
        let open: Vec<bool> = (0..graph.vertices.len()).map(|id| open.contains(&id)).collect();
        let schedule = Schedule::of(&graph, open.clone(), exports_files);
        assert_eq!(shown(&schedule), want, "{target} {open:?} {exports_files}");
        let of = |name: &str| ManifestDigest::of(name.as_bytes());
        let images: Vec<_> = schedule.images(&graph).collect();
        assert_eq!(images.contains(&of("base")), want.starts_with('0'));
        assert_eq!(images.contains(&of("tools")), want.contains('2'));
        let parts = schedule.parts_wanted(&graph, v(2));
        assert_eq!(parts.is_some(), want.contains('2'), "a path of an image that is no base");
    }
}

#[test]
fn a_cached_target_needs_its_image_only_for_an_export_of_files() {
    let graph = graph(vec![image("base"), copy(0, FileSource::Context, &["x"])]);
    for (exports_files, want) in [(false, ""), (true, "0")] {
        assert_eq!(shown(&Schedule::of(&graph, vec![false, false], exports_files)), want);
    }
}

#[test]
fn files_of_the_target_are_needed_only_if_something_reads_them() {
    let graph = two_stages();
    let open = vec![false, true, true, false, true, true];
    for (exports_files, id, want) in [(false, 5, true), (true, 5, false), (false, 4, false), (false, 2, false)] {
        let schedule = Schedule::of(&graph, open.clone(), exports_files);
        assert_eq!(schedule.is_only_in_images(&graph, v(id)), want, "{id} {exports_files}");
    }
}

#[test]
fn steps_wait_for_steps_and_not_for_images() {
    let graph = two_stages();
    let schedule = Schedule::of(&graph, vec![false, true, true, false, true, true], false);
    let waits: Vec<_> = schedule.waits(&graph).into_iter().collect();
    assert_eq!(waits, [(v(2), vec![v(1)]), (v(4), vec![v(2)]), (v(5), vec![v(4)])]);
}

#[test]
fn only_copied_paths_of_an_otherwise_unused_image_are_unpacked() {
    let from = |sources: &[&str]| copy(0, FileSource::Vertex(v(1)), sources);
    let with = |last: Vertex| graph(vec![vertex(Step::Scratch, None), image("tools"), last]);
    let parents = || copy_of(0, FileSource::Vertex(v(1)), [SourcePattern::with_parents("/bin/a")].into_iter());
    for (case, graph, want) in [
        ("two paths", with(from(&["/bin/a", "lib/b"])), Some(vec!["bin/a", "lib/b"])),
        ("everything", with(from(&["/"])), None),
        ("a pattern", with(from(&["/bin/*"])), None),
        ("--parents", with(parents()), None),
        (
            "a base as well",
            graph(vec![image("x"), image("tools"), copy(1, FileSource::Vertex(v(1)), &["/bin/a"])]),
            None,
        ),
    ] {
        let schedule = Schedule::of(&graph, vec![false, false, true], false);
        let wanted = schedule.parts_wanted(&graph, v(1));
        let want = want.map(|paths| paths.into_iter().map(PathBuf::from).collect::<BTreeSet<_>>());
        assert_eq!(wanted, want, "{case}");
    }
    // The same image is used as a base under another vertex.
    let twice = graph(vec![image("tools"), image("tools"), copy(0, FileSource::Vertex(v(1)), &["/bin/a"])]);
    assert_eq!(Schedule::of(&twice, vec![false, false, true], false).parts_wanted(&twice, v(1)), None);
}

/// Two stages copy from a third, and the target from both: 0 scratch, 1 the shared copy, 2 and 3
/// copies from it on scratch, 4 and 5 copies from those.
#[test]
fn vertices_shared_by_several_stages_run_once() {
    let stage = |from: usize| copy(0, FileSource::Vertex(v(from)), &["/a"]);
    let graph = graph(vec![
        vertex(Step::Scratch, None),
        copy(0, FileSource::Context, &["x"]),
        stage(1),
        stage(1),
        copy(2, FileSource::Vertex(v(3)), &["/a"]),
        copy(4, FileSource::Context, &["y"]),
    ]);
    for (open, want, dependants) in [
        (&[1, 2, 3, 4, 5][..], "1 2<1> 3<1> 4<2,3> 5<4>", &[2, 3][..]),
        (&[1, 3, 4, 5], "1 3<1> 4<3> 5<4>", &[3]),
        (&[2, 4, 5], "2 4<2> 5<4>", &[]),
    ] {
        let open: Vec<bool> = (0..graph.vertices.len()).map(|id| open.contains(&id)).collect();
        let schedule = Schedule::of(&graph, open, false);
        assert_eq!(shown(&schedule), want);
        let mut found: Vec<usize> = schedule.dependants(v(1)).iter().map(|id| id.position()).collect();
        found.sort_unstable();
        assert_eq!(found, dependants, "{want}");
    }
}

#[test]
fn sources_with_parent_components_and_escapes_are_image_paths() {
    let with = |source: &str| {
        graph(vec![vertex(Step::Scratch, None), image("tools"), copy(0, FileSource::Vertex(v(1)), &[source])])
    };
    for (source, want) in [("../bin/./a", Some("bin/a")), (r"a\*", Some(r"a\*")), ("/..", None), ("[a]", None)] {
        let graph = with(source);
        let wanted = Schedule::of(&graph, vec![false, false, true], false).parts_wanted(&graph, v(1));
        assert_eq!(wanted, want.map(|path| BTreeSet::from([PathBuf::from(path)])), "{source}");
    }
}
