//! Images.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use throughline_sandbox::SandboxError;
use throughline_sandbox::image::{Image, ImageBuilder, ImageError, Images, Progress};

use super::remove::removed;
use crate::arguments::ImageVerb;
use crate::error::CliError;
use crate::output;

/// `image …`
pub async fn run(verb: ImageVerb, json: bool) -> Result<u8, CliError> {
    match verb {
        ImageVerb::Build { name, rootfs, kernel, modules, refresh } => {
            let mut builder = ImageBuilder::new();
            builder = rootfs.into_iter().fold(builder, ImageBuilder::rootfs);
            builder = kernel.into_iter().fold(builder, ImageBuilder::kernel);
            builder = modules.into_iter().fold(builder, ImageBuilder::modules);
            if refresh {
                builder = builder.refresh();
            }
            let image = build(builder, json, move |builder| Images::new().build(&name, builder)).await?;
            show(&image, json);
            Ok(0)
        }
        ImageVerb::Ls => list(json),
        ImageVerb::Rm { names } => {
            for name in names {
                Images::new().remove(&name).map_err(SandboxError::from)?;
                removed(&name, json);
            }
            Ok(0)
        }
    }
}

/// Builds the image that a sandbox wants, if it is the default one and missing.
pub async fn ensure(name: &str, json: bool) -> Result<(), CliError> {
    let name = name.to_owned();
    build(ImageBuilder::new(), json, move |builder| Images::new().open_or_build(&name, builder)).await?;
    Ok(())
}

/// Builds, and shows how far it is.
async fn build(
    builder: ImageBuilder,
    json: bool,
    build: impl FnOnce(&ImageBuilder) -> Result<Image, ImageError> + Send + 'static,
) -> Result<Image, CliError> {
    // Draws nothing where there is no terminal, and nothing before there is something to tell.
    let bar = Arc::new(if json { ProgressBar::hidden() } else { ProgressBar::no_length() });
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}") {
        bar.set_style(style);
    }
    let told = bar.clone();
    let builder = builder.progress(move |Progress { step, done, total }| {
        told.set_message(step.to_string());
        if let Some(total) = total {
            told.set_length(total);
        }
        told.set_position(done);
    });
    let done = tokio::task::spawn_blocking(move || build(&builder)).await;
    bar.finish_and_clear();
    let image = done.map_err(|error| CliError::io("build the image")(error.into()))?;
    Ok(image.map_err(SandboxError::from)?)
}

fn show(image: &Image, json: bool) {
    if json {
        output::json(&json!({ "id": image.id(), "kernel": image.kernel_version(), "bytes": image.bytes() }));
    } else {
        output::line(image.id());
    }
}

fn list(json: bool) -> Result<u8, CliError> {
    let entries = Images::new().list().map_err(SandboxError::from)?;
    if json {
        let rows = entries.iter().map(|entry| {
            let created = entry.created.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            json!({
                "name": entry.name, "id": entry.image.id(), "kernel": entry.image.kernel_version(),
                "bytes": entry.image.bytes(), "rootfs": entry.image.rootfs(),
                "created_ms": u64::try_from(created).unwrap_or(u64::MAX),
            })
        });
        output::json(&rows.collect::<Vec<_>>());
        return Ok(0);
    }
    let cells = entries.iter().map(|entry| {
        let age = entry.created.elapsed().unwrap_or_default().as_millis();
        vec![
            entry.name.clone().unwrap_or_else(|| "-".to_owned()),
            entry.image.id().chars().take(12).collect(),
            output::age(u64::try_from(age).unwrap_or(u64::MAX)),
            output::bytes(entry.image.bytes()),
            entry.image.rootfs().map_or_else(|| "busybox".to_owned(), |rootfs| rootfs.source.clone()),
            entry.image.kernel_version().to_owned(),
        ]
    });
    output::table(&["NAME", "ID", "AGE", "SIZE", "USERLAND", "KERNEL"], &cells.collect::<Vec<_>>());
    Ok(0)
}
