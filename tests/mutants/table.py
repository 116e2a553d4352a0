"""The breakages: each row is one rule of the product, broken, and the tests that must notice.

`text` must occur exactly once in `file`. Tests are pytest node ids; every one of them must fail, so
name only those that guard the rule, and prefer fast ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """One rule, broken: `text` of `file` becomes `replacement`, and every test of `tests` fails."""

    rule: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


_LADDER = "trellis_runtime/contract/ladder.py"
_SCOPE = "trellis_runtime/contract/scope.py"
_PIPELINE = "trellis_runtime/worker/pipeline.py"
_MAKING = "trellis_runtime/worker/making.py"
_WORKER = "trellis_runtime/worker/worker.py"
_ADMISSION = "trellis_runtime/worker/admission.py"
_FETCH = "trellis_runtime/delivery/fetch.py"
_GUARD = "trellis_runtime/delivery/guard.py"
_S3 = "trellis_runtime/delivery/s3.py"
_IMAGES = "trellis_runtime/assets/images.py"
_READER = "trellis_runtime/assets/glb_reader.py"
_WRITER = "trellis_runtime/assets/glb_writer.py"

_CORE: tuple[Mutant, ...] = (
    # --- the ladder ---
    Mutant(
        "lossless rungs come before lossy ones",
        _LADDER,
        "for rung in RUNGS[1 : self.max_level + 1]:",
        "for rung in reversed(RUNGS[1 : self.max_level + 1]):",
        ("tests/test_ladder.py::test_less_room_leads_further_down_and_each_level_is_told",),
    ),
    Mutant(
        "the caller's lowest level is obeyed",
        _LADDER,
        "for rung in RUNGS[1 : self.max_level + 1]:",
        "for rung in RUNGS[1:]:",
        ("tests/test_ladder.py::test_the_caller_can_refuse_to_go_lower",),
    ),
    Mutant(
        "a rung that frees nothing at the failed stage is passed over",
        _LADDER,
        "    if failed_stage not in rung.frees_memory_in:",
        "    if False:",
        ("tests/test_plan.py::test_a_rung_that_frees_nothing_there_is_passed_over",),
    ),
    Mutant(
        "a rung that changes an earlier stage's product restarts there",
        _LADDER,
        "return min(failed_stage, rung.restarts_at, key=ENGINE_STAGES.index)",
        "return failed_stage",
        ("tests/test_plan.py::test_a_lower_resolution_restarts_at_the_shape",),
    ),
    Mutant(
        "only the failed stage is repeated",
        _MAKING,
        "return earliest_restart(rungs, stage)",
        "return ENGINE_STAGES[0]",
        ("tests/test_ladder.py::test_only_the_struck_stage_is_repeated",),
    ),
    Mutant(
        "every failed attempt is in the answer",
        _PIPELINE,
        "attempts=made.attempts,",
        "attempts=made.attempts[1:],",
        ("tests/test_wiring.py::test_every_attempt_is_told",),
    ),
    Mutant(
        "the degradation that is answered is the one that happened",
        _PIPELINE,
        "effective = {**descent.plan.quality(), **made.asset.effective}",
        "effective = {**descent.requested.quality(), **made.asset.effective}",
        ("tests/test_wiring.py::test_what_was_given_is_told",),
    ),
    Mutant(
        "a value that the engine itself lowered is told",
        _PIPELINE,
        "effective = {**descent.plan.quality(), **made.asset.effective}",
        "effective = descent.plan.quality()",
        ("tests/test_wiring.py::test_what_was_given_is_told",),
    ),
    Mutant(
        "the engine gives memory back before the next attempt",
        _MAKING,
        "        generation.reclaim()\n",
        "",
        ("tests/test_wiring.py::test_memory_is_reclaimed_between_attempts",),
    ),
    Mutant(
        "the traceback of an out-of-memory error holds no arrays",
        _MAKING,
        "err.__traceback__ = None",
        "kept = err  # noqa: F841",
        ("tests/test_wiring.py::test_nothing_holds_the_arrays_of_a_failed_stage",),
    ),
    Mutant(
        "a generation is closed however it ends",
        _MAKING,
        "generation.cutout())\n        finally:\n            generation.close()",
        "generation.cutout())\n        finally:\n            pass",
        ("tests/test_wiring.py::test_a_generation_is_closed_however_it_ends",),
    ),
    # --- the job boundary ---
    Mutant(
        "the event loop is never held",
        _WORKER,
        "        request = parse_request(payload)\n        with ExitStack()",
        "        request = parse_request(payload)\n        time.sleep(0.4)\n        with ExitStack()",
        ("tests/test_wiring.py::test_our_code_never_holds_the_event_loop",),
    ),
    Mutant(
        "waiting for the last progress update does not hold the loop",
        _WORKER,
        "await asyncio.to_thread(progress.close)",
        "progress.close()",
        ("tests/test_wiring.py::test_a_slow_progress_update_does_not_hold_the_loop",),
    ),
    Mutant(
        "no progress comes after the result",
        "trellis_runtime/worker/progress.py",
        "self._thread.join(_JOIN_S)",
        "pass",
        ("tests/test_wiring.py::test_a_slow_progress_update_does_not_hold_the_loop",),
    ),
    Mutant(
        "progress stays well below 1 until the result",
        "trellis_runtime/worker/progress.py",
        "        if fraction > _LAST_PROGRESS:\n            return\n",
        "",
        ("tests/test_wiring.py::test_progress_ends_below_the_result",),
    ),
    Mutant(
        "the platform's time-out is capped by ours",
        _WORKER,
        "return min(stated / 1000, default) if usable",
        "return stated / 1000 if usable",
        ("tests/test_wiring.py::test_the_platforms_time_is_capped_by_ours",),
    ),
    Mutant(
        "the platform's time-out is in milliseconds",
        _WORKER,
        "return min(stated / 1000, default) if usable",
        "return min(stated, default) if usable",
        ("tests/test_wiring.py::test_the_platforms_time_is_capped_by_ours",),
    ),
    Mutant(
        "a seed that is not given comes from the job's id",
        _WORKER,
        "os.urandom(8) if job_id in LOCAL_IDS else hashlib.sha256(job_id.encode()).digest()",
        "os.urandom(8)",
        (
            "tests/test_worker.py::test_a_seed_is_drawn_from_the_jobs_id_so_that_a_retry_is_the_same_truth",
        ),
    ),
    Mutant(
        "what nobody foresaw is answered without its text",
        _WORKER,
        'InternalError("the worker failed; see its log")',
        "InternalError(str(__import__('sys').exc_info()[1]))",
        ("tests/test_worker.py::test_what_nobody_foresaw_is_answered_without_its_secrets",),
    ),
    Mutant(
        "a stopped job's slot stays closed until its thread has left",
        "trellis_runtime/worker/watchdog.py",
        "            scope.cancel()\n            cancelled = err\n",
        "            scope.cancel()\n            raise\n",
        (
            "tests/test_worker.py::test_a_cancelled_jobs_slot_stays_closed_until_its_thread_has_left",
        ),
    ),
    Mutant(
        "a stopped job is told to stop",
        _SCOPE,
        "        self._cancelled.set()",
        "        pass",
        ("tests/test_fetch.py::test_a_stopped_job_stops_its_download",),
    ),
    Mutant(
        "a defunct worker asks to be replaced",
        _WORKER,
        'answer["refresh_worker"] = True',
        'answer["refresh_worker"] = False',
        ("tests/test_worker.py::test_a_poisoned_worker_never_becomes_ready_again",),
    ),
    Mutant(
        "a process recycles itself after as many jobs as set",
        _ADMISSION,
        "spent = 0 < self._limits.jobs_per_process <= self._served",
        "spent = False",
        ("tests/test_worker.py::test_the_worker_is_recycled_after_as_many_jobs_as_set",),
    ),
    # --- admission ---
    Mutant(
        "rejections count in a row only: a success resets them",
        _ADMISSION,
        "    def note_success(self) -> None:\n        self._rejected_in_a_row = 0",
        "    def note_success(self) -> None:\n        pass",
        ("tests/test_wiring.py::test_rejections_count_only_in_a_row[success]",),
    ),
    Mutant(
        "rejections count in a row only: another failure resets them",
        _ADMISSION,
        "        elif not isinstance(err, WorkerBusy | WorkerStopping):\n"
        "            self._rejected_in_a_row = 0\n",
        "",
        ("tests/test_wiring.py::test_rejections_count_only_in_a_row[failure]",),
    ),
    Mutant(
        "a job is refused when the queue is full",
        _ADMISSION,
        "return self._in_hand >= self._limits.room",
        "return self._in_hand > self._limits.room",
        ("tests/test_worker.py::test_fifty_at_once_are_bounded_and_the_rest_told_to_come_again",),
    ),
    Mutant(
        "a draining worker takes no job",
        _ADMISSION,
        "if state in (State.DRAINING, State.DEFUNCT, State.STARTING):",
        "if state in (State.DEFUNCT, State.STARTING):",
        ("tests/test_wiring.py::test_a_draining_worker_takes_no_job",),
    ),
    Mutant(
        "SIGTERM cancels the poll that could take another job",
        "trellis_runtime/worker/drain.py",
        "            self._polling.cancel()",
        "            pass",
        ("tests/test_wiring.py::test_draining_ends_the_poll_after_the_jobs_in_hand",),
    ),
    Mutant(
        "SIGTERM waits for the jobs in hand",
        "trellis_runtime/worker/drain.py",
        "        if self._jobs:\n",
        "        if False:\n",
        ("tests/test_wiring.py::test_draining_ends_the_poll_after_the_jobs_in_hand",),
    ),
    Mutant(
        "too little disk refuses a job before it starts",
        _ADMISSION,
        "            raise DiskFull(shortage)",
        "            pass",
        ("tests/test_worker.py::test_a_full_disk_refuses_the_job_before_it_starts",),
    ),
    # --- delivery ---
    Mutant(
        "an address inside a private network is not visited",
        _GUARD,
        "            if not is_public(address, self.limits):",
        "            if False:",
        (
            "tests/test_fetch.py::test_the_address_is_checked_at_the_connection_itself",
            "tests/test_fetch.py::test_one_private_address_among_several_is_enough_to_refuse",
        ),
    ),
    Mutant(
        "IPv4 inside IPv6 is judged as IPv4",
        _GUARD,
        "        if inner is not None:\n            return is_public(inner, limits)\n",
        "",
        ("tests/test_fetch.py::test_every_non_global_ipv4_is_refused_in_all_its_disguises",),
    ),
    Mutant(
        "the environment's proxies are not used",
        _GUARD,
        "with PoolManager(ssl_context=_tls()) as pools:",
        "with __import__('urllib3').proxy_from_url(__import__('urllib.request').request.getproxies()['http']) as pools:",
        ("tests/test_fetch.py::test_proxies_of_the_environment_are_not_used",),
    ),
    Mutant(
        "a body is capped by its real size",
        "trellis_runtime/delivery/unpack.py",
        "            if len(body) > limit:",
        "            if False:",
        ("tests/test_fetch.py::test_a_compressed_body_is_capped_by_its_real_size",),
    ),
    Mutant(
        "an upload follows no redirect",
        _FETCH,
        "        redirect=False,\n        retries=False,",
        "        redirect=True,\n        retries=3,",
        ("tests/test_fetch.py::test_an_upload_obeys_the_same_rules",),
    ),
    Mutant(
        "what arrived in the bucket is compared by size",
        "trellis_runtime/delivery/s3.py",
        "    if size != sent:",
        "    if False:",
        ("tests/test_wiring.py::test_what_a_bucket_holds_is_verified[size]",),
    ),
    Mutant(
        "what arrived in the bucket is compared by checksum",
        "trellis_runtime/delivery/s3.py",
        "    if sha256 is not None and",
        "    if False and",
        ("tests/test_wiring.py::test_what_a_bucket_holds_is_verified[checksum]",),
    ),
    Mutant(
        "an id that is no plain name cannot leave its folder",
        "trellis_runtime/delivery/storage.py",
        "    if _PLAIN_ID.fullmatch(job_id):",
        "    if True:",
        ("tests/test_delivery.py::test_a_jobs_id_cannot_leave_its_folder",),
    ),
    Mutant(
        "a file appears under its final name whole or not at all",
        "trellis_runtime/delivery/storage.py",
        "            inode = _write_flushed(partial, data)\n            partial.replace(final)\n",
        "            inode = _write_flushed(final, data)\n",
        ("tests/test_wiring.py::test_a_file_that_cannot_be_finished_leaves_the_old_one",),
    ),
    Mutant(
        "a job that fails while it is stored leaves nothing",
        _PIPELINE,
        "                store.discard(scope)\n",
        "                pass\n",
        ("tests/test_wiring.py::test_a_job_whose_answer_is_refused_leaves_no_file",),
    ),
    Mutant(
        "an answer too large for the platform is refused",
        "trellis_runtime/delivery/choose.py",
        "    if len(encoded) > max_bytes:",
        "    if False:",
        ("tests/test_wiring.py::test_an_answer_over_the_platforms_size_is_refused",),
    ),
    # --- pictures and files ---
    Mutant(
        "pixels are counted before they are decoded",
        _IMAGES,
        "    if width * height > limits.max_pixels:",
        "    if False:",
        ("tests/test_images.py::test_too_many_pixels_are_refused_before_they_are_decoded",),
    ),
    Mutant(
        "the encoded picture has a limit in bytes",
        _IMAGES,
        "    if len(encoded) > limits.max_bytes:",
        "    if False:",
        ("tests/test_images.py::test_the_limit_on_bytes_holds_before_and_after_decoding",),
    ),
    Mutant(
        "a photograph is turned upright",
        _IMAGES,
        "turn = _TURNS.get(_orientation(image))",
        "turn = None",
        ("tests/test_images.py::test_exif_rotation_is_applied",),
    ),
    Mutant(
        "an opaque material carries no alpha, and so do its maps",
        _WRITER,
        'if asset.base_color is None or any(mode != "OPAQUE" for mode, _ in _groups(asset)):',
        "if True:",
        (
            "tests/test_glb.py::test_opaque_material_drops_alpha_and_blend_keeps_it",
            "tests/test_formats.py::test_maps_have_the_opacity_that_the_glb_has",
        ),
    ),
    Mutant(
        "the metallic-roughness map is lossless",
        _WRITER,
        "jobs.append((asset.metallic_roughness, texture_format, True))",
        "jobs.append((asset.metallic_roughness, texture_format, False))",
        ("tests/test_glb.py::test_metallic_roughness_is_lossless_and_base_colour_close",),
    ),
    Mutant(
        "an index points to a vertex",
        _READER,
        "if len(indices) and int(indices.max()) >= len(positions):",
        "if False:",
        ("tests/test_glb.py::test_an_index_out_of_range_is_noticed",),
    ),
    Mutant(
        "an accessor's bounds are those of its data",
        _READER,
        "if real is None or wanted.shape != real.shape or not np.array_equal(wanted, real):",
        "if False:",
        ("tests/test_glb.py::test_bounds_that_are_not_those_of_the_data_are_noticed",),
    ),
    Mutant(
        "a mesh with coordinates that are not finite is rejected",
        "trellis_runtime/assets/mesh.py",
        "    if not np.isfinite(vertices).all():",
        "    if False:",
        ("tests/test_mesh.py::test_a_mesh_that_cannot_be_delivered_is_rejected",),
    ),
    # --- the contract and the server ---
    Mutant(
        "a refusal does not repeat a secret",
        "trellis_runtime/contract/refusals.py",
        '_SECRET_FIELDS = {"image", "image_url", "upload_url", "upload_headers"}',
        "_SECRET_FIELDS: set[str] = set()",
        ("tests/test_schema.py::test_a_refusal_shows_neither_image_nor_query",),
    ),
    Mutant(
        "a field that nobody knows is refused",
        "trellis_runtime/contract/wire.py",
        'extra="forbid"',
        'extra="ignore"',
        ("tests/test_schema.py::test_a_refusal_names_the_field_the_value_and_the_limit",),
    ),
    Mutant(
        "a bucket that is half set fails at start",
        "trellis_runtime/settings.py",
        "        problems += _half_set_bucket(environ)\n",
        "",
        ("tests/test_settings.py::test_a_half_set_bucket_fails_at_start",),
    ),
    Mutant(
        "a variable with a typo fails at start",
        "trellis_runtime/settings.py",
        "        problems = _unknown_names(environ)\n",
        "        problems: list[str] = []\n",
        ("tests/test_settings.py::test_every_problem_is_reported_at_once_with_its_name_and_value",),
    ),
    Mutant(
        "a token guards the server",
        "trellis_runtime/server/guards.py",
        "    right = hmac.compare_digest(",
        "    right = True or hmac.compare_digest(",
        ("tests/test_wiring.py::test_a_wrong_token_is_refused",),
    ),
    Mutant(
        "a body past the limit is refused",
        "trellis_runtime/server/guards.py",
        "if length.isdigit() and int(length) > served.max_body:",
        "if False:",
        ("tests/test_wiring.py::test_a_body_over_the_limit_is_refused",),
    ),
)

_ENGINE_FILE = "trellis_runtime/engines/trellis2/engine.py"
_UPSTREAM = "trellis_runtime/engines/trellis2/upstream"
_JOINTS = "tests/test_joints_engine.py::"

_GPU_ENGINE: tuple[Mutant, ...] = (
    Mutant(
        "the cascade's two samplings get the picture's features at 512 and at 1024",
        _ENGINE_FILE,
        "(self._features(512), self._features(1024)),",
        "(self._features(1024), self._features(512)),",
        (_JOINTS + "test_each_sampling_gets_its_own_model_condition_and_tokens[1024]",),
    ),
    Mutant(
        "the texture above 512 is sampled by the model for 1024",
        _ENGINE_FILE,
        "size = 512 if shape.resolution == 512 else 1024",
        "size = 512",
        (_JOINTS + "test_each_sampling_gets_its_own_model_condition_and_tokens[1024]",),
    ),
    Mutant(
        "an offloaded plan has models brought when they are used",
        _ENGINE_FILE,
        "self._pipeline.bring_models_on_use(plan.offload)",
        "self._pipeline.bring_models_on_use(False)",
        (_JOINTS + "test_models_are_brought_on_use_when_the_plan_says_so[True]",),
    ),
    Mutant(
        "noise is drawn from the job's seed",
        _ENGINE_FILE,
        "torch.manual_seed(self._seed)",
        "torch.manual_seed(0)",
        (_JOINTS + "test_noise_is_drawn_from_the_seed_in_upstreams_order[512]",),
    ),
    Mutant(
        "the decoders' convolutions run in blocks at the rung that says so",
        f"{_UPSTREAM}/adapter.py",
        "self.lean_decoders(active=lean),",
        "self.lean_decoders(active=False),",
        (_JOINTS + "test_the_lean_rung_replaces_both_decoders",),
    ),
    Mutant(
        "the texture's decoder follows the subdivisions of the shape's",
        f"{_UPSTREAM}/adapter.py",
        "self.trellis.decode_tex_slat(self.sparse(texture), guides.tensors)",
        "self.trellis.decode_tex_slat(self.sparse(texture), None)",
        (_JOINTS + "test_the_texture_follows_the_subdivisions_of_the_shape[False]",),
    ),
    Mutant(
        "a sampler gets the job's own parameters",
        f"{_UPSTREAM}/adapter.py",
        '"guidance_rescale": sampler.guidance_rescale,',
        '"guidance_rescale": 0.7,',
        (_JOINTS + "test_samplers_get_the_jobs_own_parameters",),
    ),
    Mutant(
        "upstream's code is compared with the table before the first job",
        f"{_UPSTREAM}/loading.py",
        "    interface.check_code()\n",
        "",
        ("tests/test_joints_interface.py::test_a_start_on_another_upstream_is_refused",),
    ),
    Mutant(
        "a rung that finds no layers to run in blocks is refused",
        "trellis_runtime/engines/trellis2/models/rows.py",
        "if not self.norms or not self.mlps:",
        "if False:",
        (
            "tests/test_gpu_parts.py::test_a_decoder_without_norms_or_mlps_is_refused",
            "tests/test_joints_interface.py::test_a_decoder_of_other_layers_stops_the_start",
        ),
    ),
    Mutant(
        "rows run in blocks at the rung that says so",
        "trellis_runtime/engines/trellis2/models/rows.py",
        "layer.forward = _in_blocks(forward, rows) if chunked else forward",
        "layer.forward = forward",
        ("tests/test_gpu_parts.py::test_row_blocks_change_nothing_and_are_gone_afterwards",),
    ),
    Mutant(
        "a model's latent that is not finite is refused",
        "trellis_runtime/engines/trellis2/latents.py",
        '    require_finite(f"the {name} latent", rows.feats)',
        '    require_finite(f"the {name} latent", rows.feats[:0])',
        (_JOINTS + "test_values_that_are_not_finite_are_refused",),
    ),
)

_PAGE = "tests/test_server_page.py::"

_SERVER_DOORS: tuple[Mutant, ...] = (
    Mutant(
        "a foreign Host is refused",
        "trellis_runtime/server/guards.py",
        '    if name == "localhost" or name in hosts:\n        return True',
        "    if name is not None:\n        return True",
        ("tests/test_server_doors.py::test_a_foreign_host_reaches_nothing",),
    ),
    Mutant(
        "a page of another origin is refused",
        "trellis_runtime/server/guards.py",
        "if origin is not None and urlsplit",
        'if origin == "" and urlsplit',
        ("tests/test_server_doors.py::test_a_page_of_another_origin_is_refused",),
    ),
    Mutant(
        "a caller who leaves ends the job",
        "trellis_runtime/server/app.py",
        "[task, left], return_when=asyncio.FIRST_COMPLETED",
        "[task]",
        ("tests/test_server_doors.py::test_a_caller_who_leaves_ends_the_job",),
    ),
    Mutant(
        "half-sent headers are ended",
        "trellis_runtime/server/listen.py",
        "if waits and (self.cycle is None or self.cycle is last):",
        "if waits and self.cycle is not None and self.cycle is last:",
        ("tests/test_server_doors.py::test_half_sent_headers_are_ended",),
    ),
    Mutant(
        "an upload's address is not shown",
        "trellis_runtime/server/jobs.py",
        'if not k.startswith("upload")',
        "if k",
        ("tests/test_server_doors.py::test_a_signature_is_not_shown",),
    ),
    Mutant(
        "inline files are not kept in memory",
        "trellis_runtime/server/jobs.py",
        '            del artifact["base64"]',
        "            pass",
        ("tests/test_server_doors.py::test_an_inline_answer_reaches_its_caller_and_is_not_kept",),
    ),
    Mutant(
        "no result of a worker is a file",
        "trellis_runtime/settings.py",
        " or self.endpoint_id is not None",
        "",
        (
            "tests/test_server_doors.py::test_on_the_platform_health_has_its_port_and_no_result_is_a_file",
        ),
    ),
    Mutant(
        "a full disk turns /ping unhealthy",
        "trellis_runtime/server/served.py",
        "return admission.disk_shortage() or self.dead_bucket",
        "return self.dead_bucket",
        ("tests/test_server_doors.py::test_a_full_disk_turns_ping_unhealthy",),
    ),
    Mutant(
        "a 502 while polling is lived through",
        "trellis_runtime/server/jobs.py",
        "- heard > self._worker.settings.remote.silence_s:",
        "- heard >= 0:",
        ("tests/test_server_endpoint.py::test_a_502_while_polling_is_lived_through",),
    ),
    Mutant(
        "a cancel during submit is carried to the endpoint",
        "trellis_runtime/server/jobs.py",
        "remote_id = await asyncio.shield(submitting)",
        "remote_id = await submitting",
        ("tests/test_server_endpoint.py::test_a_cancel_during_submit_is_carried_there",),
    ),
    Mutant(
        "a follower sees a job's end, however soon it comes",
        "trellis_runtime/server/jobs.py",
        'if view["state"] != "running":  #',
        'if job.state != "running":  #',
        (_PAGE + "test_a_follower_sees_the_end_that_came_while_it_was_being_told",),
    ),
    Mutant(
        "an endpoint's answer is held to the schema before any job is listed",
        "trellis_runtime/server/endpoint.py",
        'return "done", parse_answer(json.dumps(output))',
        'return "done", output',
        (
            "tests/test_server_endpoint.py::test_an_answer_of_another_kind_ends_its_job_and_every_job_can_still_be_seen",
        ),
    ),
    Mutant(
        "a damaged answer on the disk hides no other job",
        "trellis_runtime/server/kept.py",
        "answer = parse_answer((folder / ANSWER.name).read_bytes())",
        "answer = json.loads((folder / ANSWER.name).read_bytes())",
        (_PAGE + "test_a_damaged_folder_hides_no_other_job",),
    ),
    Mutant(
        "a job that is deleted while the list is made hides no other",
        "trellis_runtime/server/jobs.py",
        "key=_written, reverse=True",
        "key=lambda path: path.stat().st_mtime, reverse=True",
        (_PAGE + "test_a_damaged_folder_hides_no_other_job",),
    ),
    Mutant(
        "what finished files take is told apart from the model",
        "trellis_runtime/server/expectation.py",
        "        stages.pop(Stage.FINISH, None)\n",
        "",
        (_PAGE + "test_each_finished_file_adds_what_such_files_took",),
    ),
    Mutant(
        "a file that is no job's own outlives the job",
        "trellis_runtime/server/kept.py",
        "for path in beside + [path for path, _ in _results(folder)]:",
        "for path in list(folder.iterdir()):",
        (_PAGE + "test_a_deleted_job_is_gone_and_a_foreign_file_beside_it_stays",),
    ),
    Mutant(
        "no answer over HTTP names a file of this machine",
        "trellis_runtime/server/addresses.py",
        "if isinstance(told, str) and told.startswith(_FILE):",
        "if told is None:",
        (_PAGE + "test_only_addresses_of_files_are_changed",),
    ),
    Mutant(
        "jobs on endpoints are bounded",
        "trellis_runtime/server/jobs.py",
        "if len(self._remote) + reading >= REMOTE_ROOM:",
        "if len(self._remote) + reading > 99 * REMOTE_ROOM:",
        (
            "tests/test_server_endpoint.py::test_jobs_on_endpoints_are_bounded_and_leave_local_ones_alone",
        ),
    ),
)

_DECODER = "trellis_runtime/assets/decoder.py"
_CHILD = "trellis_runtime/assets/decode_child.py"
_CLIENT = "trellis_runtime/delivery/s3_client.py"
_EARLIER = "trellis_runtime/delivery/earlier.py"
_WORD = "trellis_runtime/worker/last_word.py"
_WATCHDOG = "trellis_runtime/worker/watchdog.py"
_TRUTH = "tests/test_delivery_truth.py::"
_WIRE = "tests/test_fetch.py::"

_BATON = "trellis_runtime/engines/trellis2/device/baton.py"
_ROOM = "trellis_runtime/engines/trellis2/device/shared_room.py"
_ENGINE_FILE = "trellis_runtime/engines/trellis2/engine.py"
_TURNS = "tests/test_baton.py::"
_GRAPHS = "trellis_runtime/engines/trellis2/models/graphs.py"
_PASSES = "tests/test_gpu_graphs.py::"
_OVERLAP = "tests/test_joints_overlap.py::"
_IN_FLIGHT = "tests/test_joints_in_flight.py::"

_SPEED: tuple[Mutant, ...] = (
    Mutant(
        "a texture is filtered along the way that it is smooth",
        "trellis_runtime/assets/png.py",
        "return min((_NONE, _SUB, _UP), key=size)",
        "return _NONE",
        ("tests/test_png.py::test_a_texture_gets_the_filter_along_which_it_is_smooth",),
    ),
    Mutant(
        "a large data map does not wait for lossless WebP",
        _WRITER,
        'return form == "png" or (is_data and len(pixels) > _LARGEST_LOSSLESS_WEBP_PX)',
        'return form == "png"',
        ("tests/test_png.py::test_a_large_data_map_is_a_png_beside_webp",),
    ),
    Mutant(
        "a stage that waits to be alone waits for those that have let go",
        _BATON,
        "if turn.alone and self._on_their_way:",
        "if False:",
        (_TURNS + "test_nobody_is_alone_while_a_stage_that_let_go_has_not_ended",),
    ),
    Mutant(
        "a stopped job stops waiting for the device",
        _BATON,
        "                    turn.check()\n",
        "",
        (_TURNS + "test_a_job_whose_time_is_over_waits_no_longer",),
    ),
    Mutant(
        "jobs are admitted by the sum of their needs",
        _ROOM,
        "sum(known) <= self._room",
        "max(known) <= self._room",
        (_TURNS + "test_a_job_waits_where_it_does_not_fit_beside_the_other[5]",),
    ),
    Mutant(
        "jobs are admitted in the order in which they came",
        _ROOM,
        "self._queue[0] is seat and self._admits(seat)",
        "self._admits(seat)",
        (_TURNS + "test_a_job_waits_where_it_does_not_fit_beside_the_other[5]",),
    ),
    Mutant(
        "a stage goes on with its own job's noise",
        _ENGINE_FILE,
        "elif self._noise_after is not None:",
        "elif False:",
        (_IN_FLIGHT + "test_stages_that_alternate_keep_their_noise_apart",),
    ),
    Mutant(
        "memory that another job took is no reason to go down the ladder",
        _ENGINE_FILE,
        "if self._must_be_alone or not (beside or self._is_crowded(extras)):",
        "if True:",
        (_IN_FLIGHT + "test_memory_that_runs_out_in_both_jobs_leaves_both_as_they_are_alone",),
    ),
    Mutant(
        "geometry is baked beside the texture only where memory has room for both",
        _ENGINE_FILE,
        "return len(surface.faces) > 0 and self._in_flight.measure() >= need",
        "return len(surface.faces) > 0 and need > 0",
        (_OVERLAP + "test_without_room_for_both_they_follow_each_other",),
    ),
    Mutant(
        "geometry baked beside is for the bake that it was made for",
        "trellis_runtime/engines/trellis2/baking/ahead.py",
        "if self.geometry is None or options != self.options:",
        "if self.geometry is None:",
        (_OVERLAP + "test_geometry_is_for_the_bake_that_it_was_made_for",),
    ),
    Mutant(
        "a job's end reaches its work on other threads",
        _SCOPE,
        "or (self.parent is not None and self.parent.cancelled)",
        "or False",
        (_OVERLAP + "test_the_jobs_end_reaches_the_geometry_and_its_own_end_not_the_job",),
    ),
    Mutant(
        "kernels that run at once keep a device busy once",
        "benchmarks/busy.py",
        "total += max(0.0, end - max(begin, reached))",
        "total += end - begin",
        ("tests/test_bench_busy.py::test_kernels_at_once_are_counted_once",),
    ),
    Mutant(
        "a pass captured for weights that have moved is not replayed",
        _GRAPHS,
        "if self.captured is None or self.weights != weights:",
        "if self.captured is None:",
        (_PASSES + "test_weights_that_were_moved_are_captured_anew",),
    ),
    Mutant(
        "a pass captured for one picture is not replayed for another",
        _GRAPHS,
        "return self.lasting or all(",
        "return self.lasting or any(",
        (_PASSES + "test_another_picture_of_the_same_size_is_not_given_the_first_ones_context",),
    ),
    Mutant(
        "only passes that wait for the host are captured",
        _GRAPHS,
        "one.is_launch_bound = share >= _LAUNCH_BOUND",
        "one.is_launch_bound = True",
        (_PASSES + "test_a_device_that_is_kept_busy_needs_no_graphs",),
    ),
    Mutant(
        "a capture that failed is not tried again",
        _GRAPHS,
        "            one.is_launch_bound = False  # never tried again for this pass\n",
        "",
        (_PASSES + "test_a_capture_that_fails_is_not_tried_again",),
    ),
    Mutant(
        "the pool of graphs that are gone is not taken up again",
        _GRAPHS,
        "        if not self._alive:",
        "        if self._pool is None:",
        (_PASSES + "test_a_pool_is_shared_while_a_graph_lives_and_never_taken_up_again",),
    ),
    Mutant(
        "a tree waits for its stream before Warp frees it",
        "trellis_runtime/engines/trellis2/baking/nearest.py",
        "            beside.settle()\n        super().__del__()\n",
        "            pass\n        super().__del__()\n",
        (
            "tests/test_gpu_geometry.py::"
            "test_a_tree_on_a_stream_of_its_own_waits_for_it_before_warp_frees_anything",
        ),
    ),
    Mutant(
        "a job short of memory runs without captured passes",
        _GRAPHS,
        "        if self.resting:\n",
        "        if False:\n",
        (_PASSES + "test_a_job_with_graphs_decodes_the_same_and_memory_gets_them_back",),
    ),
    Mutant(
        "a closed job gives its seat back",
        _ENGINE_FILE,
        "            self._in_flight.leave(self)\n",
        "            pass\n",
        (_IN_FLIGHT + "test_a_job_waits_for_its_room_and_offloaded_ones_are_alone",),
    ),
    Mutant(
        "the platform is asked for no more jobs than there is room for",
        _WORKER,
        "return wished if most is None else min(wished, most)",
        "return wished",
        ("tests/test_start.py::test_the_platform_is_told_how_many_jobs_there_is_room_for",),
    ),
)

_DELIVERY: tuple[Mutant, ...] = (
    Mutant(
        "jobs side by side do not share a library's mesh",
        "trellis_runtime/engines/embedded/surface.py",
        "        with _SIMPLIFYING:",
        "        if True:",
        (
            "tests/test_mixed.py::test_the_library_that_keeps_one_mesh_is_entered_by_one_job_at_a_time",
        ),
    ),
    Mutant(
        "an engine's own limit on jobs side by side is obeyed",
        "trellis_runtime/worker/startup.py",
        "if most is not None and limits.max_concurrent > most:",
        "if False:",
        (
            "tests/test_start.py::test_more_generations_than_an_engine_keeps_apart_are_refused_at_start",
        ),
    ),
    Mutant(
        "a deadline holds over TLS, which detaches the socket",
        _GUARD,
        "self._sockets.append(sock.dup())",
        "self._sockets.append(sock)",
        (_WIRE + "test_headers_and_bodies_that_drip_end_at_the_deadline",),
    ),
    Mutant(
        "the addresses of a host share the time",
        _GUARD,
        "share = self._seconds() / (len(tried) - number)",
        "share = self._seconds()",
        (_WIRE + "test_an_address_that_swallows_everything_leaves_time_for_the_next",),
    ),
    Mutant(
        "a lookup has an end",
        _GUARD,
        "return answer.result(timeout=self._seconds())",
        "return answer.result()",
        (_WIRE + "test_a_resolver_that_hangs_is_left_behind",),
    ),
    Mutant(
        "a stopped job lets go of its connections",
        _GUARD,
        "if self.deadline.passed or self._stopped():",
        "if self.deadline.passed:",
        (_WIRE + "test_a_job_that_is_stopped_lets_go_of_a_server_that_drips",),
    ),
    Mutant(
        "no body is read whole before it is bounded",
        _FETCH,
        "        preload_content=False,",
        "        preload_content=True,",
        (_WIRE + "test_no_body_takes_more_memory_than_its_bound",),
    ),
    Mutant(
        "what unpacks to more than its bound is not unpacked",
        "trellis_runtime/delivery/unpack.py",
        "yield self._stream.decompress(packed, room)",
        "yield self._stream.decompress(packed)",
        (_WIRE + "test_no_body_takes_more_memory_than_its_bound",),
    ),
    Mutant(
        "the region is learnt from the store",
        _CLIENT,
        "        if named := _region_of(answer):",
        "        if named := None:",
        (_TRUTH + "test_the_region_is_learnt_and_the_link_works",),
    ),
    Mutant(
        "a bucket in the endpoint's path is understood",
        _CLIENT,
        'if path not in ("", name):',
        "if path:",
        (_TRUTH + "test_a_bucket_in_the_endpoint_is_understood",),
    ),
    Mutant(
        "the link that a caller would get is read at start",
        _S3,
        "if read_back and (link := self._client.link(key)):",
        "if False:",
        (_TRUTH + "test_a_public_address_that_leads_elsewhere_fails_the_start",),
    ),
    Mutant(
        "a job's own store is tried before its engine starts",
        "trellis_runtime/delivery/choose.py",
        "            bucket.check_link(scope)",
        "            pass",
        (_TRUTH + "test_a_jobs_own_store_that_cannot_work_is_refused_before_its_engine_starts",),
    ),
    Mutant(
        "what was there before a run is not taken back by it",
        _S3,
        "            if tried.was_there is not False:",
        "            if tried.was_there is None:",
        (_TRUTH + "test_a_failing_second_run_deletes_nothing_of_the_first",),
    ),
    Mutant(
        "what another run has written by now is not taken back",
        _S3,
        'return bool(metadata.get("run") == self._run and metadata',
        "return bool(metadata",
        (_TRUTH + "test_what_another_run_wrote_in_the_meantime_is_not_taken_back",),
    ),
    Mutant(
        "a PUT whose answer was lost is looked for",
        _S3,
        "            if not self._arrived(tried):",
        "            if True:",
        (_TRUTH + "test_a_put_whose_answer_is_lost_is_looked_for",),
    ),
    Mutant(
        "a PUT that may have arrived is taken back",
        _S3,
        "        self._tried.append(tried)\n        try:\n            etag",
        "        try:\n            etag",
        (_TRUTH + "test_a_put_that_may_have_arrived_is_removed_when_the_job_fails",),
    ),
    Mutant(
        "an earlier result answers its own request only",
        _EARLIER,
        "    if found is not None and found[1] != request:",
        "    if False:",
        (_TRUTH + "test_another_request_under_the_same_id_leaves_the_first_ones_result",),
    ),
    Mutant(
        "an earlier result is answered only where it is whole",
        _EARLIER,
        "        if not store.holds(artifact, name, scope):",
        "        if False:",
        (_TRUTH + "test_an_earlier_result_that_is_not_whole_is_computed_again",),
    ),
    Mutant(
        "a job that is run again is not computed again",
        _PIPELINE,
        "if earlier := delivery.earlier_result(request.output, scope):",
        "if earlier := None:",
        (_TRUTH + "test_a_job_that_is_run_again_is_answered_without_computing",),
    ),
    Mutant(
        "a local file of an earlier run is not taken back",
        "trellis_runtime/delivery/storage.py",
        "        if not was_there:",
        "        if True:",
        (_TRUTH + "test_a_local_file_of_an_earlier_run_is_not_taken_back",),
    ),
    Mutant(
        "a result is posted again after 408, 425 and 429",
        _WORD,
        "answer.status >= 500 or answer.status in _TRANSIENT",
        "answer.status >= 500",
        ("tests/test_last_word.py::test_a_pause_that_the_platform_asks_for_is_kept",),
    ),
    Mutant(
        "the pause that the platform asks for is kept",
        _WORD,
        "return max(asked, ",
        "return max(0.0, ",
        ("tests/test_last_word.py::test_a_pause_that_the_platform_asks_for_is_kept",),
    ),
    Mutant(
        "a progress post ends before the result is posted",
        _WORD,
        "_post(session, url, job_data, PROGRESS_S)",
        "_post(session, url, job_data, 600.0)",
        ("tests/test_last_word.py::test_a_progress_post_that_hangs_is_ended_before_the_result",),
    ),
    Mutant(
        "the SDK's own way to post is replaced",
        "handler.py",
        "    rp_http._transmit = Poster().transmit",
        "    Poster()",
        ("tests/test_last_word.py::test_a_result_is_posted_until_it_is_taken[[429]]",),
    ),
    Mutant(
        "a worker starts without the SDK's search for the processor's name",
        "handler.py",
        '    cpuinfo.get_cpu_info = lambda: {"brand_raw": platform.machine()}\n',
        "",
        ("tests/test_start.py::test_the_sdk_is_imported_without_a_search_for_the_processors_name",),
    ),
    Mutant(
        "a stage that does not return is given up",
        _WATCHDOG,
        "    while not running.done() and not end.passed:",
        "    while not running.done():",
        ("tests/test_watchdog.py::test_a_stop_ends_a_stage_that_never_returns",),
    ),
    Mutant(
        "a process with a stuck thread leaves without it",
        "handler.py",
        "    if worker.has_stuck_thread:",
        "    if False:",
        (
            "tests/test_watchdog.py::test_a_stage_that_never_returns_is_answered_and_the_process_leaves",
        ),
    ),
    Mutant(
        "repeated stops do not lengthen the grace",
        _WATCHDOG,
        "end = min(end, Deadline.after(grace_s), key=Deadline.remaining)",
        "end = Deadline.after(grace_s)",
        ("tests/test_watchdog.py::test_many_stops_do_not_lengthen_the_grace",),
    ),
    Mutant(
        "a picture that takes too long is ended",
        _DECODER,
        "                if deadline.passed or scope.cancelled:",
        "                if scope.cancelled:",
        ("tests/test_decoder.py::test_a_picture_of_thousands_of_scans_is_ended",),
    ),
    Mutant(
        "a decoder's memory is bounded by the picture's header",
        _CHILD,
        "        bound_address_space(room_for(encoded, limits))",
        "        room_for(encoded, limits)",
        ("tests/test_decoder.py::test_a_picture_that_lies_takes_no_more_than_its_header_explains",),
    ),
    Mutant(
        "a picture too long for a square is refused",
        _IMAGES,
        "    if min(size) >= limits.min_side_px > shrunk:",
        "    if False:",
        (
            "tests/test_decoder.py::test_a_picture_too_long_for_a_square_is_refused_before_it_is_decompressed",
        ),
    ),
    Mutant(
        "a long picture is scaled before it is made square",
        _IMAGES,
        "    pixels = within_side(pixels, limits.max_side_px)\n",
        "",
        (
            "tests/test_decoder.py::test_a_long_picture_is_scaled_to_a_side_whose_square_is_accepted",
        ),
    ),
    Mutant(
        "a decoder ends with the worker that it serves",
        _CHILD,
        "            if os.getppid() != parent:\n                return\n",
        "            pass\n",
        ("tests/test_decoder.py::test_children_do_not_outlive_a_parent_that_is_killed",),
    ),
)


_BAKING = "trellis_runtime/engines/trellis2/baking"
_BY_VALUES = f"{_JOINTS}test_the_asset_is_the_marked_shape_by_values[512]"

_BAKE: tuple[Mutant, ...] = (
    Mutant(
        "a link's sides are told by which way their half-edges run",
        f"{_BAKING}/sides.py",
        "ways = 2 * order + (faces[face, k] >= faces[face, (k + 1) % 3])",
        "ways = 2 * order",
        ("tests/test_bake_shells.py::test_which_way_the_given_faces_turn_makes_no_difference",),
    ),
    Mutant(
        "a root is the least of what hangs under it",
        f"{_BAKING}/component_kernels.py",
        "met = warp.atomic_cas(parent, high, high, low)\n        if met == high:",
        "met = warp.atomic_cas(parent, low, low, high)\n        if met == low:",
        ("tests/test_bake_components.py::test_links_may_come_some_at_a_time_and_more_than_once",),
    ),
    Mutant(
        "a thing's label is its root, however far above",
        f"{_BAKING}/component_kernels.py",
        "    while parent[here] != here:\n",
        "    if parent[here] != here:\n",
        ("tests/test_bake_components.py::test_random_links_give_what_scipy_finds[400]",),
    ),
    Mutant(
        "a recorded launch keeps the tensors that it reads",
        f"{_BAKING}/launch.py",
        "    kept = list(arguments)\n",
        "    kept = [a.clone() if isinstance(a, Tensor) else a for a in arguments]\n",
        (
            "tests/test_bake_launch.py::"
            "test_a_recorded_launch_runs_anew_each_time_over_what_its_tensors_hold_then",
        ),
    ),
    Mutant(
        "a log line goes to what is standard error when it is written",
        "trellis_runtime/logs.py",
        "logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),",
        "logger_factory=structlog.PrintLoggerFactory(sys.stderr),",
        ("tests/test_logs.py::test_a_line_goes_to_what_is_standard_error_when_it_is_written",),
    ),
    Mutant(
        "a high chart is tried at the rows that were passed over, too",
        f"{_BAKING}/uv_kernels.py",
        "y = warp.max(start, y - step + 1) - 1",
        "y = y - 1",
        ("tests/test_bake_unwrap.py::test_a_high_chart_lies_right_on_the_one_below_it[200]",),
    ),
    Mutant(
        "a kernel gets no tensor of other dimensions than it declares",
        f"{_BAKING}/launch.py",
        "if told.ndim != declared.type.ndim:",
        "if False:",
        ("tests/test_bake_launch.py::test_a_tensor_of_another_kind_is_refused",),
    ),
    Mutant(
        "what is translucent hides nothing",
        f"{_BAKING}/visibility.py",
        "asked, count, through=True)",
        "asked, count)",
        ("tests/test_bake_see_through.py::test_what_is_cut_away_hides_nothing",),
    ),
    Mutant(
        "rays pass clear faces only where it is asked what can be seen",
        f"{_BAKING}/visibility.py",
        "self._opaque if through else self._all",
        "self._opaque",
        ("tests/test_bake_see_through.py::test_a_leaking_glass_gets_no_inside",),
    ),
    Mutant(
        "what glass shows of an opaque wall's inside and of a sheet is not dropped",
        f"{_BAKING}/visibility.py",
        "    if view.clear is not None:\n        dark",
        "    if False:\n        dark",
        (
            "tests/test_bake_see_through.py::test_the_inside_of_an_opaque_wall_stays_where_glass_shows_it[0.2]",
            "tests/test_bake_see_through.py::test_a_sheet_in_a_glass_stays[0-True]",
        ),
    ),
    Mutant(
        "geometry made without colours is made again where alpha shows what it dropped",
        f"{_BAKING}/bake.py",
        "        if self.hidden == 0:",
        "        if True:",
        (
            "tests/test_joints_overlap.py::test_geometry_is_made_again_where_alpha_shows_what_it_had_dropped",
        ),
    ),
    Mutant(
        "an opaque face beside another chart's glass is not blended",
        f"{_BAKING}/alpha.py",
        "torch.where(raster.covered, floor, alpha.float())",
        "floor",
        (
            "tests/test_bake_see_through.py::test_the_body_in_the_glass_has_its_own_colour_and_is_not_blended",
        ),
    ),
    Mutant(
        "metallic is blue and roughness is green",
        f"{_BAKING}/texels.py",
        "[red, pixels[..., 4], pixels[..., 3]]",
        "[red, pixels[..., 3], pixels[..., 4]]",
        (_BY_VALUES,),
    ),
    Mutant(
        "the mesh is turned, not mirrored",
        f"{_BAKING}/bake.py",
        "np.stack([x, z, -y], axis=1)",
        "np.stack([x, z, y], axis=1)",
        (_BY_VALUES,),
    ),
    Mutant(
        "textures are not upside down",
        f"{_BAKING}/bake.py",
        "            uvs=layout.uvs.cpu().numpy(),",
        "            uvs=1 - layout.uvs.cpu().numpy(),",
        (_BY_VALUES,),
    ),
    Mutant(
        "an open sheet is decimated as one layer",
        f"{_BAKING}/shells.py",
        "    if bool(chosen.any()):",
        "    if False:",
        ("tests/test_bake_sheets.py::test_a_sheet_and_a_sphere_share_one_budget",),
    ),
    Mutant(
        "a sheet is cut off only where what it was joined to closes behind it",
        f"{_BAKING}/sheets.py",
        "taken(~held & worth, patch",
        "taken(worth, patch",
        ("tests/test_bake_sheets.py::test_where_one_side_goes_over_into_two_nothing_is_cut",),
    ),
    Mutant(
        "a sheet whose rim is long for its few faces is not cut off",
        f"{_BAKING}/sheets.py",
        "worth = 3 * faces - 2 * inner <= _MOST_STRIPS * left**0.5 * faces",
        "worth = faces > 0",
        (
            "tests/test_bake_sheets.py::test_a_small_leaf_with_a_long_rim_keeps_its_faces_for_itself",
        ),
    ),
    Mutant(
        "the strips along a sheet's rim are in its budget",
        f"{_BAKING}/decimation.py",
        "int(of_layer.sum()) + _STRIP * rim",
        "int(of_layer.sum())",
        ("tests/test_bake_sheets.py::test_what_is_counted_on_the_way_down_is_what_comes_of_it",),
    ),
    Mutant(
        "decimation changes no mesh that it was given",
        f"{_BAKING}/decimation.py",
        "vertices.float().clone().contiguous()",
        "vertices.float().contiguous()",
        ("tests/test_bake_decimation.py::test_inputs_are_left_as_they_were",),
    ),
    Mutant(
        "a job that insists on a check is not given an asset that fails it",
        _MAKING,
        "            if report is None or not failed:",
        "            if report is None or True:",
        ("tests/test_quality_retries.py::test_without_a_seed_left_the_job_fails_in_words",),
    ),
    Mutant(
        "an engine that measures nothing refuses strict checks",
        _PIPELINE,
        "    if request.strict and not engine.measures_quality:",
        "    if False:",
        (
            "tests/test_quality_retries.py::test_an_engine_that_measures_nothing_refuses_strict_checks",
        ),
    ),
)

_FIN = "tests/test_finishes.py::"
_DET, _HULLS = "tests/test_bake_detail.py::", "tests/test_hulls.py::"
_DETAIL = "trellis_runtime/engines/trellis2/baking/detail.py"
_FORMATS: tuple[Mutant, ...] = (
    Mutant(
        "a finish that fails does not take the others with it",
        "trellis_runtime/worker/finishes.py",
        "    return isinstance(err, JobCancelled | DeadlineExceeded) or err.poisons_worker",
        "    return True",
        (f"{_FIN}test_a_finish_that_fails_leaves_the_others_alone",),
    ),
    Mutant(
        "an engine that cannot be trusted ends the job, in a finish too",
        "trellis_runtime/worker/finishes.py",
        "    return isinstance(err, JobCancelled | DeadlineExceeded) or err.poisons_worker",
        "    return isinstance(err, JobCancelled | DeadlineExceeded)",
        (f"{_FIN}test_an_engine_that_cannot_be_trusted_ends_the_job",),
    ),
    Mutant(
        "finishes that want the same bake share it",
        "trellis_runtime/worker/finishes.py",
        "            if made == plan:",
        "            if False:",
        (f"{_FIN}test_sampling_is_done_once_and_each_file_is_as_it_is_told",),
    ),
    Mutant(
        "a map that the engine cannot bake is refused before anything is computed",
        _PIPELINE,
        "        require_bakeable(request.output, self.engine)\n",
        "",
        (f"{_FIN}test_maps_that_the_engine_cannot_bake_are_refused_before_anything_is_computed",),
    ),
    Mutant(
        "a finish has maps of its own",
        "trellis_runtime/worker/orders.py",
        "            maps=self.maps,\n",
        "",
        (f"{_FIN}test_a_finish_has_the_requests_maps_its_own_or_none_without_a_texture",),
    ),
    Mutant(
        "a normal is written in the frame that the file holds",
        _DETAIL,
        "torch.linalg.cross(normal, tangent) * sign",
        "torch.linalg.cross(normal, tangent)",
        (f"{_DET}test_few_faces_with_the_normal_map_look_nearer_to_the_full_surface",),
    ),
    Mutant(
        "decoded faces may turn either way",
        "trellis_runtime/engines/trellis2/baking/detail_kernels.py",
        "        normals[i] = smooth * warp.sign(lean)",
        "        normals[i] = smooth",
        (f"{_DET}test_faces_may_turn_either_way",),
    ),
    Mutant(
        "faces that one sees through stop no light",
        _DETAIL,
        "[self.full.opaque.bvh_id(),",
        "[self.full.surface.bvh_id(),",
        (f"{_DET}test_faces_that_one_sees_through_stop_no_light",),
    ),
    Mutant(
        "rays follow the cosine",
        "trellis_runtime/engines/trellis2/baking/detail_kernels.py",
        "* warp.sqrt(area)\n",
        "* area\n",
        (f"{_DET}test_a_bowl_sees_as_much_of_the_sky_as_its_sphere_lacks",),
    ),
    Mutant(
        "the memory that maps take is asked for",
        "trellis_runtime/engines/trellis2/baking/bake.py",
        "        texels += detail_bytes(faces, size, options.maps)\n",
        "        pass\n",
        (f"{_DET}test_the_memory_that_maps_take_is_asked_for",),
    ),
    Mutant(
        "finding hulls has an end",
        "trellis_runtime/assets/hulls.py",
        "            if deadline.passed:",
        "            if False:",
        (f"{_HULLS}test_a_process_that_takes_too_long_is_ended",),
    ),
    Mutant(
        "hulls are found by a process that may die",
        "trellis_runtime/assets/hulls.py",
        "    if child.returncode != 0 or not answer:",
        "    if False:",
        (f"{_HULLS}test_a_process_that_aborts_takes_no_other_file_with_it",),
    ),
    Mutant(
        "hulls lie where the model does",
        "trellis_runtime/worker/finishes.py",
        "        hulls = convex_hulls(placed, order.hulls, scope)",
        "        hulls = convex_hulls(self.asset, order.hulls, scope)",
        (f"{_HULLS}test_hulls_are_a_file_of_the_job_and_lie_where_the_model_does",),
    ),
    Mutant(
        "a rung that lowered one bake does not lower the next",
        _LADDER,
        "rung.lossless or rung.restarts_at is not None]",
        "True]",
        (f"{_FIN}test_rungs_that_lowered_one_bake_do_not_lower_the_next",),
    ),
    Mutant(
        "an absent library is told before anything is computed",
        _PIPELINE,
        "        require_writable(request.output)\n",
        "",
        (f"{_FIN}test_a_library_that_is_absent_is_told_before_anything_is_computed",),
    ),
    Mutant(
        "no address goes into a file's recipe",
        "trellis_runtime/worker/recipe.py",
        '"output": {"upload_url": True, "upload_headers": True},',
        "",
        (f"{_FIN}test_addresses_with_signatures_are_not_in_the_recipe",),
    ),
    Mutant(
        "an earlier result counts only with all of its finishes",
        "trellis_runtime/delivery/earlier.py",
        "            if not store.holds(told.artifact, told.file_name, scope):",
        "            if False:",
        (f"{_FIN}test_a_job_that_is_run_again_finds_its_finishes_in_the_bucket",),
    ),
    Mutant(
        "what is too large for the answer is compressed before it is refused",
        "trellis_runtime/worker/fitting.py",
        "    if room is None or len(exported.data) <= room:",
        "    if True:",
        (f"{_FIN}test_what_is_too_large_for_the_answer_is_compressed_before_it_is_refused",),
    ),
    Mutant(
        "a file for printers is in millimetres",
        "trellis_runtime/contract/files.py",
        '"stl": FormatFacts("stl", "model/stl", up="z", per_metre=1000.0, printed=True)',
        '"stl": FormatFacts("stl", "model/stl", up="z", printed=True)',
        (f"{_FIN}test_sampling_is_done_once_and_each_file_is_as_it_is_told",),
    ),
    Mutant(
        "what compression lost is not given out",
        "trellis_runtime/assets/glb_draco.py",
        "    if len(after.faces) != len(faces):",
        "    if False:",
        ("tests/test_formats.py::test_what_compression_lost_is_refused",),
    ),
    Mutant(
        "what meshopt lost is not given out",
        "trellis_runtime/assets/glb_meshopt.py",
        "        if not len(faces) - _collapsed(corners) <= len(back) <= len(faces):",
        "        if False:",
        ("tests/test_formats.py::test_what_meshopt_lost_is_refused",),
    ),
    Mutant(
        "meshopt without gltfpack is refused before anything is computed",
        "trellis_runtime/assets/formats/write.py",
        '    if compression == "meshopt" and not gltfpack.WASM.is_file():',
        "    if False:",
        (f"{_FIN}test_meshopt_without_gltfpack_is_told_before_anything_is_computed",),
    ),
    Mutant(
        "a second buffer is one that has no bytes",
        _READER,
        "or not all(map(_has_no_bytes, buffers[1:]))",
        "or False",
        (
            "tests/test_glb.py::"
            "test_textures_are_read_beside_a_buffer_that_has_no_bytes_and_beside_no_other",
        ),
    ),
    Mutant(
        "maps are baked as the GLB that they belong to",
        "trellis_runtime/worker/orders.py",
        "            texture_size=self.texture_size if self.facts.textures else 0,",
        '            texture_size=512 if self.format == "maps" else self.texture_size,',
        (f"{_FIN}test_maps_are_those_of_the_glb_that_they_are_asked_beside_and_cost_no_bake",),
    ),
    Mutant(
        "what has no mesh has no size and no place",
        "trellis_runtime/contract/request.py",
        "        if not facts.has_mesh:\n            self._require_no_place()\n",
        "",
        (f"{_FIN}test_a_finish_that_cannot_be_is_refused_and_the_schema_says_the_same",),
    ),
    Mutant(
        "v runs upwards in OBJ",
        "trellis_runtime/assets/formats/obj.py",
        "    upwards = asset.uvs * [1, -1] + [0, 1]",
        "    upwards = asset.uvs",
        ("tests/test_formats.py::test_obj_is_read_by_trimesh",),
    ),
    Mutant(
        "verify notices a changed file",
        "trellis_runtime/cli/verify.py",
        '{"whole": _sha256(blob) == recipe.get(CONTENT_HASH)}',
        '{"whole": True}',
        ("tests/test_verify.py::test_a_file_that_was_changed_is_told",),
    ),
)

_LOADING = "trellis_runtime/engines/trellis2/upstream"
_WHOLE = "tests/test_weights_whole.py::"
_FINITE = "tests/test_weights_finite.py::"
_REMOVER = "tests/test_weights_remover.py::"
_ACCEPTANCE = "tests/test_acceptance.py::"

_WEIGHTS: tuple[Mutant, ...] = (
    Mutant(
        "a tensor that a helper's file lacks is never random",
        f"{_LOADING}/helpers.py",
        "        _require_empty(report, name, folder)",
        "        pass",
        (_WHOLE + "test_a_model_that_lacks_a_tensor_or_has_one_more_is_refused",),
    ),
    Mutant(
        "real weights are not taken from a loader that tells nothing",
        f"{_LOADING}/helpers.py",
        "    if not reports and not is_synthetic:",
        "    if False:",
        (_WHOLE + "test_real_weights_are_never_taken_from_what_tells_nothing",),
    ),
    Mutant(
        "transformers is left as it was",
        f"{_LOADING}/helpers.py",
        "        base.from_pretrained = own",
        "        pass",
        (_WHOLE + "test_a_model_that_is_whole_is_loaded_and_nothing_stays_patched",),
    ),
    Mutant(
        "an image encoder of another size stops the start",
        f"{_LOADING}/helpers.py",
        "    if shape.hidden_size != context:",
        "    if False:",
        (_WHOLE + "test_an_encoder_of_another_size_is_refused_before_the_first_job",),
    ),
    Mutant(
        "what is fetched ahead is taken back with an error",
        "trellis_runtime/engines/trellis2/device/residency.py",
        "        except BaseException:\n            self.drop_ahead()",
        "        except BaseException:\n            pass",
        (
            "tests/test_gpu_fetching.py::test_a_job_that_is_stopped_leaves_nothing_under_way_and_all_weights_as_they_were",
        ),
    ),
    Mutant(
        "a model is fetched ahead where the sums have room for it alone",
        "trellis_runtime/engines/trellis2/engine.py",
        "return following if sums.fits(room, plan.resolution, plan.background) else None",
        "return following",
        (
            "tests/test_gpu_fetching.py::test_nothing_is_fetched_where_the_sums_leave_no_room_or_nobody_asked",
        ),
    ),
    Mutant(
        "memory is read or given back only after the copy",
        "trellis_runtime/engines/trellis2/device/fetching.py",
        "        copies, self._copies, self._name = self._copies, [], None\n        self._carrier.settle()",
        "        copies, self._copies, self._name = self._copies, [], None",
        ("tests/test_gpu_fetching.py::test_memory_is_read_or_given_back_only_after_the_copy",),
    ),
    Mutant(
        "a stage that fails beside a fetched model is repeated without",
        "trellis_runtime/engines/trellis2/engine.py",
        "return self._fetch_ahead and plan.offload and not self._must_be_alone",
        "return self._fetch_ahead and plan.offload",
        (
            "tests/test_gpu_fetching.py::test_a_stage_that_runs_out_of_memory_beside_a_fetched_model_is_repeated_without",
        ),
    ),
    Mutant(
        "roots are read again where their file has changed",
        "trellis_runtime/delivery/guard.py",
        "(place, Path(place).stat().st_mtime_ns)",
        "(place, 0)",
        ("tests/test_fetch.py::test_roots_are_read_once_and_again_where_their_file_has_changed",),
    ),
    Mutant(
        "patches alone are turned by where they are, about their own centres",
        "trellis_runtime/engines/trellis2/models/dinov3.py",
        "torch.arange(0.5, count, **on)",
        "torch.arange(0.0, count, **on)",
        (
            "tests/test_weights_dinov3.py::test_features_are_those_that_upstream_reads_out_of_transformers",
        ),
    ),
    Mutant(
        "an encoder of another architecture is refused",
        "trellis_runtime/engines/trellis2/models/dinov3.py",
        "            if stated != built:",
        "            if False:",
        (
            "tests/test_weights_dinov3.py::test_another_architecture_is_refused_before_weights_are_read",
        ),
    ),
    Mutant(
        "a start imports no helper's code that it does not need",
        f"{_LOADING}/loading.py",
        "        imports.leave_helpers_out()",
        "        pass",
        (
            "tests/test_weights_dinov3.py::test_a_start_imports_the_removers_code_where_there_is_a_remover_alone",
        ),
    ),
    Mutant(
        "positions are computed where they need no compiler of torch's",
        f"{_LOADING}/checkpoints.py",
        '            asked["device"] = "cpu"',
        "            pass",
        (
            "tests/test_weights_dinov3.py::test_a_start_imports_the_removers_code_where_there_is_a_remover_alone",
        ),
    ),
    Mutant(
        "a description that no class takes is told with its file's name",
        f"{_LOADING}/checkpoints.py",
        "    except (TypeError, AttributeError) as err:",
        "    except ZeroDivisionError as err:",
        (
            _WHOLE + "test_a_description_that_no_class_takes_stops_the_start_with_its_files_name",
            _WHOLE + "test_a_pipeline_that_upstream_does_not_take_is_named",
        ),
    ),
    Mutant(
        "a placeholder for normalisation is refused with real weights",
        f"{_LOADING}/checkpoints.py",
        "    if bool((mean == 0).all() and (std == 1).all()) and not is_synthetic:",
        "    if False:",
        (_WHOLE + "test_a_placeholder_for_normalisation_is_refused_with_real_weights",),
    ),
    Mutant(
        "the remover's pass is in the placement's sums",
        "trellis_runtime/engines/trellis2/device/placement.py",
        "            working = max(working, REMOVER_WORKING_BYTES)",
        "            pass",
        (
            _REMOVER
            + "test_the_removers_pass_counts_where_it_is_the_largest_and_only_where_it_runs",
            _REMOVER + "test_the_engine_goes_by_the_sums",
        ),
    ),
    Mutant(
        "the warm-up runs the background remover",
        "trellis_runtime/worker/warmup.py",
        "        _run(engine, photograph(), plan, ENGINE_STAGES[:1])",
        "        pass",
        (
            _REMOVER + "test_the_warm_up_cuts_out_a_photograph_first",
            _REMOVER + "test_a_remover_that_fails_stops_the_start",
        ),
    ),
    Mutant(
        "the warm-up is offloaded where a job would be",
        "trellis_runtime/worker/warmup.py",
        "    plan = replace(plan, offload=engine.wants_offload(plan))",
        "    plan = replace(plan)",
        (_REMOVER + "test_the_warm_up_of_a_card_without_room_for_all_is_offloaded",),
    ),
    Mutant(
        "a photograph without a remover is refused before anything is computed",
        _ENGINE_FILE,
        "        if not pipeline.removes_backgrounds and needs_remover(image, plan.background):",
        "        if False:",
        (
            _REMOVER
            + "test_a_photograph_without_a_remover_is_the_callers_error_before_anything_is_computed",
            _REMOVER + "test_the_answer_to_such_a_job_says_what_to_send",
        ),
    ),
    Mutant(
        "a decoder's subdivisions are watched, not its output alone",
        f"{_LOADING}/decoders.py",
        "        if model.pred_subdiv:\n            layers.append",
        "        if False:\n            layers.append",
        (_FINITE + "test_tokens_are_never_lost_to_a_cascade_that_overflows",),
    ),
    Mutant(
        "values that are not finite are refused",
        "trellis_runtime/engines/trellis2/models/finite.py",
        "    if finite.all():",
        "    if True:",
        (
            _FINITE + "test_every_network_is_watched",
            _FINITE + "test_what_overflows_in_a_decoder_is_named_before_geometry_sees_it",
        ),
    ),
    Mutant(
        "a wider decoder gets its own weights back",
        "trellis_runtime/engines/trellis2/models/finite.py",
        "            parameter.data = data",
        "            pass",
        (
            _FINITE + "test_a_wider_decoder_decodes_that_stage_alone",
            _FINITE + "test_both_types_hold_what_float16_does_not",
        ),
    ),
    Mutant(
        "a stage that is decoded wider samples from the same noise",
        _ENGINE_FILE,
        "        self._decoder_dtype = wide\n        self._set_noise(stage)\n",
        "        self._decoder_dtype = wide\n",
        (_FINITE + "test_a_cascade_samples_again_from_the_same_noise",),
    ),
    Mutant(
        "a wider decoder is told in the answer",
        _ENGINE_FILE,
        "        if self._widened:\n            told",
        "        if False:\n            told",
        (_FINITE + "test_the_answer_says_that_a_decoder_was_wider",),
    ),
    Mutant(
        "acceptance allows no more than twice upstream's distance from itself",
        "trellis_runtime/engines/trellis2/acceptance.py",
        "MOST_TIMES_ITSELF = 2.0",
        "MOST_TIMES_ITSELF = 100.0",
        (_ACCEPTANCE + "test_ours_may_be_as_far_from_upstream_as_upstream_is_from_itself",),
    ),
    Mutant(
        "acceptance runs upstream's own flow modules, not ours twice",
        "trellis_runtime/engines/trellis2/comparison.py",
        "        yield replace(pipeline, flows=own)",
        "        yield pipeline",
        (_ACCEPTANCE + "test_a_flow_that_differs_fails_at_its_own_stages_alone",),
    ),
    Mutant(
        "a rung passes acceptance by every bit",
        "trellis_runtime/engines/trellis2/acceptance.py",
        "    if other:\n",
        "    if False:\n",
        (_ACCEPTANCE + "test_one_bit_that_differs_fails_a_rung",),
    ),
    Mutant(
        "a check that failed is in acceptance's exit status",
        "trellis_runtime/cli/acceptance.py",
        "    return 1 if failed else 0",
        "    return 0",
        (_ACCEPTANCE + "test_a_folder_that_is_not_whole_fails_with_its_reason_and_no_path",),
    ),
    Mutant(
        "no folder of this machine is in what acceptance prints",
        "trellis_runtime/cli/acceptance.py",
        "                text = text.replace(str(folder), name)",
        "                pass",
        (_ACCEPTANCE + "test_a_folder_that_is_not_whole_fails_with_its_reason_and_no_path",),
    ),
    Mutant(
        "a file that changed since it was fetched is told",
        "trellis_runtime/engines/model_record.py",
        'digest(path) != stated["sha256"]',
        "False",
        (_ACCEPTANCE + "test_a_file_that_changed_is_told_by_its_record",),
    ),
    Mutant(
        "a rehearsal follows the shape that is asked for",
        f"{_LOADING}/rehearsal.py",
        "        self._mesh = mesh_of(name)",
        '        self._mesh = mesh_of("smooth")',
        (
            "tests/test_rehearsal_shapes.py::"
            "test_a_rehearsal_voxelises_the_shape_that_is_asked_for_and_may_change_it",
        ),
    ),
)

_GUARDS = "trellis_runtime/server/guards.py"
_LISTEN = "trellis_runtime/server/listen.py"
_BOUNDS = "tests/test_server_bounds.py::"

_ATTACKED: tuple[Mutant, ...] = (
    Mutant(
        "a bucket that dies while serving turns /ping unhealthy",
        "trellis_runtime/server/served.py",
        "self.dead_bucket = err.message",
        "pass",
        (_TRUTH + "test_a_bucket_that_dies_while_serving_turns_ping_unhealthy",),
    ),
    Mutant(
        "a body that does not arrive is given up",
        _GUARDS,
        "asyncio.wait_for(request.body(), BODY_S)",
        "asyncio.wait_for(request.body(), 900)",
        (_BOUNDS + "test_a_body_that_does_not_arrive_is_given_up",),
    ),
    Mutant(
        "connections have a bound",
        _LISTEN,
        "if len(self.connections) > MAX_CONNECTIONS:",
        "if False:",
        (_BOUNDS + "test_connections_have_a_bound",),
    ),
    Mutant(
        "a body that is read counts as a job",
        _GUARDS,
        "require_room(worker, served.reading)",
        "require_room(worker)",
        (
            _BOUNDS + "test_a_body_that_is_read_counts_as_a_job",
            _BOUNDS + "test_the_doors_keep_within_their_memory",
        ),
    ),
    Mutant(
        "a body that is read for an endpoint counts as a job there",
        _GUARDS,
        "jobs.require_remote_room(served.reading_for_endpoints)",
        "jobs.require_remote_room()",
        (_BOUNDS + "test_a_body_that_is_read_counts_as_a_job",),
    ),
    Mutant(
        "the scheme's name has no case",
        _GUARDS,
        'scheme.lower() == "bearer"',
        'scheme == "Bearer"',
        (_BOUNDS + "test_the_schemes_name_has_no_case",),
    ),
    Mutant(
        "the platform's PORT is listened to",
        "trellis_runtime/cli/parser.py",
        "port = args.port or platform.port or 8000",
        "port = args.port or 8000",
        (_BOUNDS + "test_the_platforms_ports_are_listened_to",),
    ),
    Mutant(
        "PORT_HEALTH answers",
        _LISTEN,
        "if health is not None and health != port:",
        "if False:",
        (_BOUNDS + "test_the_platforms_ports_are_listened_to",),
    ),
    Mutant(
        "a worker whose engine cannot be loaded takes no further job",
        _WORKER,
        'self.admission.mark_defunct("the engine could not be loaded")',
        "pass",
        (_BOUNDS + "test_an_engine_that_fails_to_load_with_the_first_job_turns_ping_unhealthy",),
    ),
    Mutant(
        "of two runs that upload at once the first one's object stays",
        _S3,
        'IfNoneMatch="*", ',
        "",
        (_TRUTH + "test_of_two_runs_that_upload_at_once_the_first_ones_object_stays",),
    ),
    Mutant(
        "another run's other bytes are not taken for ours",
        _S3,
        'if found.get("Metadata", {}).get("sha256") != tried.sha256:',
        "if False:",
        (_TRUTH + "test_of_two_runs_that_upload_at_once_the_first_ones_object_stays[another]",),
    ),
    Mutant(
        "an upload that is damaged on its way is sent again",
        _CLIENT,
        '    "BadDigest",  # damaged on its way: what was sent is right\n',
        "",
        (_TRUTH + "test_an_upload_that_is_damaged_on_its_way_is_sent_again",),
    ),
    Mutant(
        "a refusal is not the last word about a job that is done",
        _WORKER,
        "                if earlier is None:\n",
        "                if job_id:\n",
        (_TRUTH + "test_a_refusal_is_not_the_last_word_about_a_job_that_is_done",),
    ),
    Mutant(
        "a refused job leaves no thread",
        _WORKER,
        "        request = parse_request(payload)\n        with ExitStack()",
        "        request = parse_request(payload)\n        ProgressSender(notify or print)\n"
        "        with ExitStack()",
        ("tests/test_worker.py::test_a_refused_job_leaves_no_thread",),
    ),
    Mutant(
        "a link that fails once is visited again",
        _CLIENT,
        "            if answer.transient:\n                raise refusal(",
        "            if answer is None:\n                raise refusal(",
        (_TRUTH + "test_a_link_that_fails_once_is_visited_again",),
    ),
)


_EVENTS = "tests/test_events.py::"
_CONTRACT: tuple[Mutant, ...] = (
    Mutant(
        "what an address refuses is not asked for again",
        _FETCH,
        "            retryable=is_transient(response.status),",
        "            retryable=True,",
        (f"{_EVENTS}test_what_an_address_refuses_it_refuses_again",),
    ),
    Mutant(
        "a store's own code reaches the caller",
        _FETCH,
        '    return f" ({found.group(1).decode()})" if found else ""',
        '    return ""',
        (f"{_EVENTS}test_a_stores_own_code_reaches_the_caller",),
    ),
    Mutant(
        "no try of a download begins after its time",
        "trellis_runtime/delivery/tries.py",
        "            too_late = within is not None and within.remaining() <= pause",
        "            too_late = False",
        (f"{_EVENTS}test_tries_end_with_the_time_of_the_download",),
    ),
    Mutant(
        "a presigned PUT sends no header that was not signed",
        "trellis_runtime/delivery/presigned.py",
        '        return "content-type" in signed',
        "        return True",
        (f"{_EVENTS}test_a_put_sends_what_was_signed",),
    ),
    Mutant(
        "an address that has expired is told before the job runs",
        "trellis_runtime/delivery/presigned.py",
        "    if expires is not None and expires + _SKEW < (now or datetime.now(UTC)):",
        "    if False:",
        (f"{_EVENTS}test_a_signature_that_has_expired_is_refused_at_once",),
    ),
    Mutant(
        "a model that an answer cannot hold is refused before it is computed",
        "trellis_runtime/delivery/choose.py",
        "            self._require_room(least, what)",
        "            pass",
        (f"{_EVENTS}test_a_place_that_takes_any_size_is_asked_for_none",),
    ),
    Mutant(
        "a library's word about values is no fault of ours",
        "trellis_runtime/worker/blame.py",
        "        if not of_library(err):",
        "        if True:",
        (f"{_EVENTS}test_a_librarys_word_about_values_has_its_own_code",),
    ),
    Mutant(
        "a fault of ours is not blamed on the picture",
        "trellis_runtime/worker/blame.py",
        "        if not of_library(err):",
        "        if False:",
        (f"{_EVENTS}test_a_fault_of_ours_stays_one",),
    ),
    Mutant(
        "no word of pydantic's reaches a caller",
        "trellis_runtime/contract/refusals.py",
        '    words = _WORDS.get(problem["type"], "is not usable")',
        '    return str(problem["msg"])\n    words = ""',
        ("tests/test_api_page.py::test_no_word_of_a_library_reaches_a_caller",),
    ),
    Mutant(
        "the same seed is not worth a second try",
        _WORKER,
        "                err.retryable = False  # the same seed makes the same values",
        "                pass",
        (f"{_EVENTS}test_a_mesh_that_comes_again_is_not_worth_a_second_try",),
    ),
    Mutant(
        "where a file goes is checked before the work",
        "trellis_runtime/cli/console.py",
        "    elif not folder.is_dir():",
        "    elif False:",
        ("tests/test_cli_words.py::test_where_a_file_goes_is_checked_before_the_work",),
    ),
)


_TOKEN_FREE = "tests/test_image.py::test_the_default_build_needs_no_token_and_fetches_no_model"
_LICENCES = "builder/licences.py"
_HUB_CACHE = "tests/test_checkpoint.py::test_models_are_found_in_the_snapshot_of_a_hubs_cache"

_IMAGE: tuple[Mutant, ...] = (
    Mutant(
        "the image that is built without a target needs no token",
        "Dockerfile",
        "FROM worker AS slim",
        "FROM full AS slim",
        (_TOKEN_FREE,),
    ),
    Mutant(
        "hosts with drivers later than the toolkit are allowed",
        "builder/toolkits.py",
        "return _REPORTED[_REPORTED.index(self.floor) :]",
        "return (self.floor,)",
        ("tests/test_image.py::test_hub_deploy_script_and_guide_name_the_same_hosts",),
    ),
    Mutant(
        "no checkpoint is fetched that pipeline.json does not name",
        "builder/fetch_models.py",
        'return [f"{where}.*" for where in models if where.startswith("ckpts/")]',
        'return ["ckpts/*" for where in models if where]',
        ("tests/test_builder.py::test_models_are_fetched_rewritten_recorded_and_verified",),
    ),
    Mutant(
        "a remover for non-commercial use is warned of",
        "builder/fetch_models.py",
        "            if name in NOT_COMMERCIAL:",
        "            if False:",
        (
            "tests/test_builder.py"
            "::test_a_remover_for_non_commercial_use_is_taken_on_demand_alone_and_warned_of",
        ),
    ),
    Mutant(
        "each licence of an AND has to be accepted",
        _LICENCES,
        "        wrong = wrong + more",
        "        wrong = wrong and more",
        ("tests/test_licences.py::test_an_expression_is_accepted_as_a_whole",),
    ),
    Mutant(
        "a kernel cache of another user's is copied",
        "trellis_runtime/engines/trellis2/device/kernel_cache.py",
        "    if not _is_ours(place):",
        "    if False:",
        ("tests/test_start.py::test_a_kernel_cache_that_is_no_folder_stops_nothing",),
    ),
    Mutant(
        "the snapshot of a hub's cache is found",
        "trellis_runtime/engines/trellis2/upstream/checkpoints.py",
        "    folder = _snapshot(folder)\n",
        "",
        (_HUB_CACHE,),
    ),
)


_VAR, _LAT = "tests/test_variants.py::", "tests/test_latents.py::"
_BACK = "tests/test_taken_back.py::"
_KEPT: tuple[Mutant, ...] = (
    Mutant(
        "the picture of several seeds is conditioned once",
        _MAKING,
        "        self._run(own, ENGINE_STAGES[1:])",
        "        self._run(own, ENGINE_STAGES)",
        (f"{_VAR}test_the_picture_is_prepared_once_and_each_variant_is_as_a_job_of_its_own",),
    ),
    Mutant(
        "a variant is sampled from its own seed",
        _MAKING,
        "        begun.generation.reseed(seed)\n",
        "",
        (f"{_VAR}test_the_picture_is_prepared_once_and_each_variant_is_as_a_job_of_its_own",),
    ),
    Mutant(
        "a variant that fails leaves the others",
        "trellis_runtime/worker/variants.py",
        "                    if ends_the_job(err):",
        "                    if True:",
        (f"{_VAR}test_a_variant_that_fails_leaves_the_others_alone",),
    ),
    Mutant(
        "a strict check holds for each variant",
        _MAKING,
        "        return self._strictly(self._made(own, begun.generation.cutout()))",
        "        return self._made(own, begun.generation.cutout())",
        (f"{_VAR}test_a_strict_check_holds_for_each_variant",),
    ),
    Mutant(
        "one variant's way down the ladder is not the next one's",
        _LADDER,
        "plan, [*self.taken], {**self.reasons})",
        "plan, self.taken, {**self.reasons})",
        (f"{_VAR}test_each_variant_goes_down_the_ladder_on_its_own",),
    ),
    Mutant(
        "variants that were delivered are taken back with their job",
        _PIPELINE,
        "            stores.extend(delivered.stores)\n",
        "",
        (f"{_VAR}test_what_ends_a_job_ends_its_variants_and_nothing_is_left",),
    ),
    Mutant(
        "an inline answer is shared by its variants",
        "trellis_runtime/delivery/choose.py",
        "self.limits.max_answer_bytes / self.shares",
        "self.limits.max_answer_bytes",
        (f"{_VAR}test_variants_that_are_too_large_are_refused_before_anything_is_computed",),
    ),
    Mutant(
        "progress of variants never goes back",
        _SCOPE,
        "            self.progress(self._stage, done / self.variants)",
        "            self.progress(self._stage, done)",
        (f"{_VAR}test_progress_says_which_variant_and_never_goes_back",),
    ),
    Mutant(
        "latents are finished only as they were written",
        "trellis_runtime/worker/latents.py",
        "    if hashlib.sha256(found.data).hexdigest() != opened.facts.sha256:",
        "    if False:",
        (f"{_LAT}test_what_is_gone_expired_foreign_or_damaged_is_told_apart",),
    ),
    Mutant(
        "latents of other versions are refused",
        "trellis_runtime/worker/latents.py",
        "    if theirs == ours:",
        "    if True:",
        (f"{_LAT}test_what_is_gone_expired_foreign_or_damaged_is_told_apart",),
    ),
    Mutant(
        "the bucket's own end of an object is obeyed",
        "trellis_runtime/worker/latents.py",
        "        ends = ends if found.expires is None else min(ends, found.expires)\n",
        "",
        (f"{_LAT}test_the_buckets_own_end_of_an_object_is_obeyed",),
    ),
    Mutant(
        "an array's header is not believed",
        "trellis_runtime/assets/arrays.py",
        "or count * kind.itemsize != len(member) - start",
        "",
        (f"{_LAT}test_a_header_that_claims_more_than_there_is_takes_no_memory",),
    ),
    Mutant(
        "kept heights are looked at before the bake",
        "trellis_runtime/engines/embedded/decoded.py",
        "        if not all(((h >= 0) & (h <= _HIGHEST)).all() for h in heights):",
        "        if False:",
        (f"{_LAT}test_arrays_that_are_not_the_engines_own_are_refused_before_the_bake",),
    ),
    Mutant(
        "kept cells are looked at before a kernel gets them",
        "trellis_runtime/engines/trellis2/latents.py",
        "    if not inside or",
        "    if",
        (
            "tests/test_joints_latents.py::test_latents_that_are_not_the_engines_own_reach_no_kernel",
        ),
    ),
    Mutant(
        "what was sampled is changed by no rung",
        _LADDER,
        "        if at is None or ENGINE_STAGES.index(at) >= ENGINE_STAGES.index(first):",
        "        if True:",
        (f"{_LAT}test_what_was_sampled_is_given_up_by_no_rung",),
    ),
    Mutant(
        "latents on this machine are bounded",
        "trellis_runtime/delivery/latents.py",
        "        if lying + size > room or now",
        "        if now",
        (f"{_LAT}test_what_is_over_its_time_is_swept_and_the_oldest_go_where_room_is_short",),
    ),
    Mutant(
        "a job that fails later takes its latents back",
        _PIPELINE,
        "            store = delivery.latents(delivery.kept_id)\n            stores.append(store)\n",
        "            store = delivery.latents(delivery.kept_id)\n",
        (f"{_LAT}test_a_job_that_fails_after_keeping_leaves_nothing",),
    ),
    Mutant(
        "an array's header that is none is damage, whatever its reader raises",
        "trellis_runtime/assets/arrays.py",
        "(ValueError, TypeError, SyntaxError, MemoryError, RecursionError, TokenError)",
        "ValueError",
        (f"{_LAT}test_a_header_that_is_none_is_told_as_damage",),
    ),
    Mutant(
        "variants' latents do not take each other's place",
        "trellis_runtime/delivery/choose.py",
        "LocalLatents(self.limits, kept_id, self.shares)",
        "LocalLatents(self.limits, kept_id)",
        (f"{_LAT}test_a_variants_latents_do_not_take_the_place_of_its_siblings",),
    ),
    Mutant(
        "of an object that is too long the beginning is read",
        "trellis_runtime/delivery/s3_client.py",
        'found.pop("Body").read(most)',
        'found.pop("Body").read()',
        (f"{_BACK}test_an_object_that_is_longer_than_what_is_read_is_no_fault_of_the_worker",),
    ),
    Mutant(
        "an answer without room for any model is refused at once",
        _PIPELINE,
        "    delivery.require_fits(request, may_compress=may_compress(request.output))",
        "    if not may_compress(request.output):\n        delivery.require_fits(request)",
        (
            f"{_VAR}test_an_answer_without_room_for_any_model_is_refused_before_anything_is_computed",
        ),
    ),
    Mutant(
        "two runs of one job do not write into one file",
        "trellis_runtime/delivery/storage.py",
        "{os.getpid()}-{secrets.token_hex(4)}-{self._folder.name}",
        "{os.getpid()}-{self._folder.name}",
        (f"{_BACK}test_two_runs_of_one_job_write_side_by_side_and_each_file_is_whole",),
    ),
    Mutant(
        "another run's local file is not taken back",
        "trellis_runtime/delivery/storage.py",
        "                if path.stat().st_ino == inode:",
        "                if True:",
        (f"{_BACK}test_a_run_takes_back_no_file_that_another_run_has_put_in_its_place",),
    ),
    Mutant(
        "the time in which a failed job's files are looked for is not the job's",
        "trellis_runtime/delivery/s3.py",
        "        except WorkerError:  # a slow bucket's",
        "        except StorageFailed:  # a slow bucket's",
        (f"{_BACK}test_a_put_that_is_refused_is_told_though_the_bucket_then_hangs",),
    ),
    Mutant(
        "a failed job's other files go where one cannot",
        _PIPELINE,
        "            except Exception:  # noqa: BLE001 - the others",
        "            except KeyboardInterrupt:  # noqa: BLE001 - the others",
        (f"{_BACK}test_what_one_store_cannot_take_back_keeps_no_other_from_it",),
    ),
    Mutant(
        "either run's latents.json tells the truth",
        "trellis_runtime/delivery/s3.py",
        "tried.name in (ANSWER.name, FACTS.name)",
        "tried.name == ANSWER.name",
        (f"{_BACK}test_another_run_that_kept_the_same_latents_meanwhile_is_no_failure",),
    ),
    Mutant(
        "latents that say a time without a zone stop no worker",
        "trellis_runtime/delivery/latents.py",
        "        if (ends := datetime.fromisoformat(told)).tzinfo is not None:",
        "        if ends := datetime.fromisoformat(told):",
        (f"{_BACK}test_whatever_lies_among_the_latents_stops_no_job_and_no_start",),
    ),
)


MUTANTS: tuple[Mutant, ...] = (
    _CORE
    + _GPU_ENGINE
    + _BAKE
    + _SERVER_DOORS
    + _DELIVERY
    + _WEIGHTS
    + _SPEED
    + _CONTRACT
    + _IMAGE
    + _FORMATS
    + _KEPT
    + _ATTACKED
)
