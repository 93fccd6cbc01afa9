use std::sync::Arc;

use rbuild_engine::CacheMode;
use rbuild_layer::LayerForm;
use rbuild_transport::{CacheLimits, SharedCache};

use crate::input::cache::fields::{SHARDS, TAG};
use crate::input::cache::{CachePlace, CacheReader, sources, targets};

#[test]
fn records_in_an_image_have_no_place() {
    let [target] = &targets(&["type=inline".into()]).unwrap()[..] else { panic!() };
    assert!(matches!(target.to, CachePlace::Image));
    assert!(targets(&["type=inline,ref=a.io/b".into()]).is_err());
    let reader =
        CacheReader { records: &|_| panic!("no registry is asked"), layers: &|| Arc::new(|_, _| None), note: &|_| () };
    assert!(sources(&["type=inline,ref=a.io/b".into()], reader).is_err());
}

#[test]
fn values_are_parsed_as_in_buildkit() {
    let place = rbuild_testkit::Scratch::new();
    let dest = place.join("a/b");
    let text = format!(
        "type=local,dest={},mode=max,compression=zstd,compression-level=5,ignore-error=true,max-size=1g,max-age=2d",
        dest.display()
    );
    let [target] = &targets(&[text, "type=gha".into()]).unwrap()[..] else { panic!() };
    assert_eq!((target.export.form.name().as_str(), target.export.mode), ("zstd-5", CacheMode::Max));
    let CachePlace::Directory(to) = &target.to else { panic!() };
    assert_eq!((to.tag.as_str(), target.ignores_errors), (TAG, true));
    assert_eq!(target.limits.age, 172_800);
    let text = format!("\"type=local\",DEST={},tag=main", dest.display());
    let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
    assert_eq!((target.export.form, target.export.mode), (LayerForm::default(), CacheMode::Min));
    let CachePlace::Directory(to) = &target.to else { panic!() };
    assert_eq!((to.tag.as_str(), target.limits), ("main", CacheLimits::default()));
    for text in ["a.io/b", "type=registry,ref=a.io/b", "ref=a.io/b:latest,type=registry,oci-mediatypes=true"] {
        let [target] = &targets(&[text.to_string()]).unwrap()[..] else { panic!() };
        let CachePlace::Shared(SharedCache::Registry(cache)) = &target.to else { panic!() };
        assert_eq!((cache.name().familiar().as_str(), cache.shards()), ("a.io/b:latest", SHARDS), "{text}");
    }
    for (text, want) in [
        ("scope=feature/a", "a.io/b:cache-feature-a-"),
        ("scope=main,shards=2", "a.io/b:cache-main"),
        ("ref=a.io/b:x,scope=main", "a.io/b:x-main"),
        ("ref=a.io/b:latest,scope=main", "a.io/b:latest-main"),
    ] {
        let [target] = &targets(&[format!("type=registry,ref=a.io/b,{text}")]).unwrap()[..] else { panic!() };
        let CachePlace::Shared(SharedCache::Registry(cache)) = &target.to else { panic!() };
        assert!(cache.name().familiar().starts_with(want), "{text}");
    }
    for text in ["scope=a;b", "shards=0", "shards=65", "shards=x"] {
        assert!(targets(&[format!("type=registry,ref=a.io/b,{text}")]).is_err(), "{text}");
    }
    let text = format!("type=local,dest={},scope=main", dest.display());
    let [target] = &targets(&[text]).unwrap()[..] else { panic!() };
    assert!(matches!(&target.to, CachePlace::Directory(to) if to.tag == "cache-main"));
    let digest = format!("type=registry,ref=a.io/b:x@{}", rbuild_image::BlobDigest::of(b"x"));
    assert!(targets(&[digest]).is_err());
    assert!(!dest.exists(), "nothing is created before the build");
    let src = format!("type=local,src={}", dest.display());
    let notes = std::cell::RefCell::new(String::new());
    let reader = CacheReader {
        records: &|_| panic!("no registry is asked"),
        layers: &|| Arc::new(|_, _| None),
        note: &|text| notes.borrow_mut().push_str(text),
    };
    assert!(sources(std::slice::from_ref(&src), reader).unwrap().is_empty());
    assert_eq!(notes.take(), format!("--cache-from {src}: there is no cache yet"));
    assert!(sources(&[format!("{src},required")], reader).is_err());
}
