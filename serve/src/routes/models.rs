//! `GET /v1/models`: the base, then each task, its baseline, its adapters.

use actix_web::{HttpResponse, web};
use retune_task::ModelName;
use retune_wire::model_object;
use serde_json::{Value, json};

use crate::error::Error;
use crate::routing::{Table, adapter_name, baseline_name};
use crate::state::App;

pub(crate) async fn list(app: web::Data<App>) -> HttpResponse {
    HttpResponse::Ok()
        .json(json!({ "object": "list", "data": models(&app.table.load(), app.created) }))
}

pub(crate) async fn one(app: web::Data<App>, id: web::Path<String>) -> Result<HttpResponse, Error> {
    let models = models(&app.table.load(), app.created);
    // A fine-tuned model has OpenAI's kind of name as well.
    let name = match ModelName::parse(&id) {
        Some(adapter @ ModelName::Adapter { .. }) => adapter.to_string(),
        _ => id.clone(),
    };
    let found = models.into_iter().find(|m| m["id"] == name.as_str());
    found
        .map(|m| HttpResponse::Ok().json(m))
        .ok_or_else(|| Error::UnknownModel(id.into_inner()))
}

fn models(table: &Table, created: i64) -> Vec<Value> {
    let base = &table.base;
    let mut models = vec![model_object(
        base,
        created,
        &json!({ "parent": null, "digest": null, "stage": "base" }),
    )];
    for routes in table.tasks() {
        let task = &routes.task.name;
        let champion = routes.stages.champion.and_then(|n| routes.adapters.get(&n));
        let digest = champion.map(|a| a.manifest.digest.as_str());
        let task_is = json!({ "parent": base, "digest": digest, "stage": "champion", "champion": routes.champion() });
        models.push(model_object(task, created, &task_is));
        models.push(model_object(
            &baseline_name(task),
            created,
            &json!({ "parent": base, "digest": null, "stage": "baseline" }),
        ));
        for (number, adapter) in &routes.adapters {
            let stages = &routes.stages;
            let more = json!({
                "parent": base,
                "digest": adapter.manifest.digest,
                "stage": stages.stage(*number),
                "canary_share": stages.canary_share(*number),
                "shadow_share": stages.shadow_share(*number),
            });
            models.push(model_object(
                &adapter_name(task, *number),
                adapter.manifest.created.timestamp(),
                &more,
            ));
        }
    }
    models
}
