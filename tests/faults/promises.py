"""Promises of movq, the tests that hold them, and whether the tests fail when a promise is broken.

    python -m tests.faults.promises [NUMBER ...]

For each promise one or more lines of movq are changed in a copy of the tree, and the promise's tests must fail there.
Prints a table.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Break(NamedTuple):
    """A change that breaks a promise: `old` becomes `new` in a file of movq_cli, and `tests` fail."""

    words: str
    file: str
    old: str
    new: str
    tests: str


PROMISES = {
    1: (
        "Whole or absent",
        [
            Break(
                "the output has a name while it is written",
                "files.py",
                'if hasattr(os, "O_TMPFILE"):',
                "if False:",
                "test_files.py::test_sigkill_leaves_nothing",
            ),
            Break(
                "an unfinished output gets its name after an error",
                "files.py",
                "        os.close(self._fd)\n        if self._named",
                "        kind and self.commit()\n        os.close(self._fd)\n        if self._named",
                "test_files.py::test_nothing_until_commit_and_nothing_without",
            ),
        ],
    ),
    2: (
        "Durable",
        [
            Break(
                "the data is not synced",
                "files.py",
                "os.fsync(self._fd)",
                "pass",
                "test_files.py::test_synced_then_named_then_the_folder_synced",
            ),
            Break(
                "the folder is not synced",
                "files.py",
                "            sync(self._folder)\n",
                "",
                "test_files.py::test_synced_then_named_then_the_folder_synced",
            ),
        ],
    ),
    3: (
        "A bad input is refused in one line",
        [
            Break(
                "PyAV's exceptions are not caught",
                "video/container.py",
                'raise MovqError(f"{what} ({_words(error)})") from error',
                "raise",
                "test_cli.py::test_bad_inputs_are_one_line_and_leave_nothing",
            )
        ],
    ),
    4: (
        "Never less than the whole video without a warning",
        [
            Break(
                "the number of packets and the end time are not compared with the header",
                "video/decoding.py",
                "        check_whole(self._source, timeline.totals(), self._passed)\n",
                "",
                "test_video.py::test_a_cut_video_is_refused_wherever_it_is_cut",
            ),
            Break(
                "the end of a file is not checked",
                "video/integrity.py",
                "if ends_well is not None and not ends_well(source.data, read.last_byte):",
                "if False:",
                "test_video.py::test_every_format_tells_where_it_is_cut",
            ),
            Break(
                "the last fragment of an MP4 is not looked at",
                "video/integrity.py",
                "if not fragments_end(source.data):",
                "if False:",
                "test_field.py::test_a_file_that_cannot_be_had_is_refused_by_name",
            ),
            Break(
                "frames in front of the first key frame are lost without a word",
                "video/decoding.py",
                "            if self._waiting and self._lost:\n                frames",
                "            if False:\n                frames",
                "test_field.py::test_frames_in_front_of_the_first_key_frame_are_left_out_and_counted",
            ),
            Break(
                "what the decoder conceals counts as harmless",
                "video/decoding.py",
                "return level > av.logging.WARNING or _HARMLESS.match(message) is not None",
                "return True",
                "test_field.py::test_damage_in_the_head_of_a_packet_is_refused_or_costs_no_frame",
            ),
            Break(
                "lost packets of a transport stream are not looked for",
                "video/decoding.py",
                "if carriers is None:",
                "if True:",
                "test_field.py::test_lost_packets_of_a_transport_stream_are_warned_of",
            ),
            Break(
                "a partial video is not marked as partial",
                "video/frames.py",
                "            self.partial = True\n",
                "",
                "test_video.py::test_of_a_cut_video_what_comes_before_is_taken_where_that_is_allowed",
            ),
            Break(
                "a change of size is accepted",
                "video/decoding.py",
                "if self._size != (frame.width, frame.height):",
                "if False:",
                "test_video.py::test_size_change_in_mid_stream",
            ),
        ],
    ),
    5: (
        "The pixels are those a viewer shows",
        [
            Break(
                "libav guesses the colour matrix",
                "video/frames.py",
                "                src_colorspace=colour.matrix_number,\n",
                "",
                "test_video.py::test_colour_as_tagged",
            ),
            Break(
                "every colour range counts as limited",
                "video/frames.py",
                "src_color_range=colour.range_number",
                "src_color_range=1",
                "test_video.py::test_colour_as_tagged",
            ),
            Break(
                "a horizontal mirror is ignored",
                "video/frames.py",
                "return Orientation(False, a < 0, d < 0)",
                "return Orientation(False, False, d < 0)",
                "test_video.py::test_all_eight_orientations",
            ),
            Break(
                "the file's own cropping is ignored",
                "video/frames.py",
                "        self.facts = stream_facts(source.stream)\n",
                "        self.facts = stream_facts(source.stream)._replace(left=0, top=0, right=0, bottom=0)\n",
                "test_field.py::test_a_clean_aperture_is_cut_out_in_mp4_and_matroska",
            ),
            Break(
                "all pixels count as square",
                "video/frames.py",
                "        aspect = self.source.stream.sample_aspect_ratio or Fraction(1)\n",
                "        aspect = Fraction(1)\n",
                "test_video.py::test_pixels_that_are_not_square",
            ),
            Break(
                "Exif is left to libav",
                "video/frames.py",
                "        self._exif = read_orientation(data)\n",
                "",
                "test_pictures.py::test_damage_elsewhere_in_exif_costs_neither_the_turn_nor_the_picture",
            ),
            Break(
                "side data is not filtered",
                "video/sidedata.py",
                "graph.link_nodes(entry, *others, end)",
                "graph.link_nodes(entry, end)",
                "test_pictures.py::test_a_display_matrix_is_found_among_side_data_without_a_name",
            ),
        ],
    ),
    6: (
        "Every frame once, in order, with its time",
        [
            Break(
                "decoding begins at key frames that need earlier frames",
                "video/keyframes.py",
                "packet.is_keyframe and _H264_IDR in types",
                "packet.is_keyframe",
                "test_seek.py::test_the_entry_is_the_last_key_frame_in_front",
            ),
            Break(
                "skipped frames are not counted",
                "video/decoding.py",
                "self.last, self._entered = entry.frames, ",
                "self.last, self._entered = self.index, ",
                "test_seek.py::test_frames_are_those_of_decoding_everything",
            ),
            Break(
                "frame times are counted instead of read",
                "video/decoding.py",
                "return frame.pts * base",
                "return self.end",
                "test_video.py::test_variable_frame_times",
            ),
            Break(
                "the last frames stay in the decoder",
                "video/decoding.py",
                "                yield packet\n                return\n",
                "                return\n",
                "test_video.py::test_containers_and_b_frames",
            ),
        ],
    ),
    7: (
        "Only the named files are opened",
        [
            Break(
                "any format is opened",
                "video/container.py",
                '            "format_whitelist": demuxer or _VIDEO_FORMATS,\n',
                "",
                "test_video.py::test_bad_files_are_refused_with_the_reason",
            ),
            Break(
                "pictures are opened by name patterns",
                "video/container.py",
                "demuxer = still.format if still else None",
                "demuxer = 'image2' if still else None",
                "test_video.py::test_a_pattern_in_a_name_opens_no_neighbours",
            ),
        ],
    ),
    8: (
        "No code runs from data",
        [
            Break(
                "pickles are loaded",
                "checkpoints/convert.py",
                "weights_only=True",
                "weights_only=False",
                "test_convert.py::test_refused_in_one_line_with_nothing_written",
            )
        ],
    ),
    9: (
        "Bounded",
        [
            Break(
                "pictures may have any size",
                "video/container.py",
                "MAX_WIDTH, MAX_HEIGHT = 8192, 4320",
                "MAX_WIDTH, MAX_HEIGHT = 81920, 43200",
                "test_video.py::test_bad_files_are_refused_with_the_reason",
            ),
            Break(
                "a picture may have any number of pixels per byte",
                "video/container.py",
                "_PIXELS_PER_BYTE = 10_000",
                "_PIXELS_PER_BYTE = 10**9",
                "test_field.py::test_a_picture_above_the_limit_of_videos_is_taken_and_a_bomb_is_not",
            ),
            Break(
                "a decoder may take any amount of memory",
                "video/child.py",
                "        _bound(self._taken, request.memory_limit)\n",
                "",
                "test_video.py::test_a_decoder_that_takes_too_much_memory_is_an_error_of_its_file",
            ),
            Break(
                "latents are kept in memory",
                "latents.py",
                "        self._frames.append(n)\n",
                "        self._frames.append(n)\n        self.__dict__.setdefault('kept', []).append(latents.clone())\n",
                "test_latents.py::test_memory_does_not_hold_what_was_appended",
            ),
        ],
    ),
    10: (
        "Weights and latents are checked",
        [
            Break(
                "weights may be NaN",
                "checkpoints/checkpoint.py",
                "                require_finite(name, tensor, self.path)\n",
                "",
                "test_cli.py::test_bad_weights_are_one_line_and_leave_nothing",
            ),
            Break(
                "latents may be NaN",
                "latents.py",
                "if not bool(torch.isfinite(latents).all()):",
                "if False:",
                "test_latents.py::test_values_that_are_not_finite_are_not_written",
            ),
            Break(
                "the origin of NaN is not traced",
                "encoding.py",
                "self._check = True",
                "raise MovqError('gives numbers that are not finite') from None",
                "test_encode.py::test_numbers_that_are_not_finite_are_traced_to_stage_and_frame",
            ),
        ],
    ),
    11: (
        "Inputs are never changed, and a batch stays in its folders",
        [
            Break(
                "an output may be an input",
                "files.py",
                "os.path.samefile(output, path)",
                "False",
                "test_encode.py::test_an_output_that_is_an_input_is_refused",
            ),
            Break(
                "a manifest may name any file",
                "batch/paths.py",
                "        if not is_plain(name):",
                "        if False:",
                "test_safety.py::test_what_is_no_plain_path_is_refused_with_its_line",
            ),
            Break(
                "outputs are written through links",
                "batch/worker.py",
                "            refuse_links(folder, item.output)\n",
                "",
                "test_safety.py::test_nothing_is_written_through_a_link",
            ),
            Break(
                "a file at the place of a packed file is deleted unchecked",
                "batch/pack.py",
                'if self._holds(name, said, kind) and sha256_file(path) == said["sha256"]:',
                "if self._holds(name, said, kind):",
                "test_safety.py::test_only_what_movq_made_is_deleted_when_it_is_packed",
            ),
            Break(
                "any picture of that name is deleted as an old first frame",
                "first_frame.py",
                "if kind not in kept and is_first_frame(path, kind):",
                "if kind not in kept and os.path.exists(path):",
                "test_first_frame.py::test_files_of_others_are_neither_written_over_nor_deleted_nor_packed",
            ),
            Break(
                "a first frame may be the source",
                "encoding.py",
                "            refuse_inputs(path, source, *by.checkpoint.files)",
                "            refuse_inputs(output, source, *by.checkpoint.files)",
                "test_first_frame.py::test_files_of_others_are_neither_written_over_nor_deleted_nor_packed",
            ),
            Break(
                "captions are read through any link",
                "batch/captions.py",
                "    if os.path.islink(path) and not leads_into(path, folder, *sources, hub_repository(folder)):",
                "    if False:",
                "test_safety.py::test_a_caption_is_no_link_to_somewhere_else",
            ),
        ],
    ),
    12: (
        "No silent overwrite, and refused before the work",
        [
            Break(
                "existing files are replaced",
                "files.py",
                "        if not self._force:\n            raise MovqOutputError",
                "        if False:\n            raise MovqOutputError",
                "test_cli.py::test_outputs_that_cannot_be_are_refused_at_once",
            ),
            Break(
                "a batch replaces outputs made with other options",
                "batch/replace.py",
                "    if plan.differing and not allowed:",
                "    if False:",
                "test_replace.py::test_a_forgotten_option_replaces_nothing",
            ),
            Break(
                "a first frame replaces a picture of others",
                "batch/paths.py",
                " and name not in own and not is_first_frame(path, kind):",
                " and False:",
                "test_first_frame.py::test_files_of_others_are_neither_written_over_nor_deleted_nor_packed",
            ),
        ],
    ),
    13: (
        "A full disk is one line",
        [
            Break(
                "system errors are not caught",
                "files.py",
                "        raise write_error(error, path) from error\n",
                "        raise\n",
                "test_files.py::test_a_full_disk_is_one_line",
            )
        ],
    ),
    14: (
        "Ctrl-C, TERM and HUP end movq cleanly",
        [
            Break(
                "TERM is not handled",
                "cli/__init__.py",
                "_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)",
                "_SIGNALS = (signal.SIGINT,)",
                "test_cli.py::test_signals_leave_nothing",
            )
        ],
    ),
    15: (
        "One bad file never stops a batch",
        [
            Break(
                "a worker that dies ends the run",
                "batch/pool.py",
                "                    error = _death(worker.child.death())",
                "                    raise",
                "test_pool.py::test_a_worker_that_dies_or_hangs_costs_one_attempt_at_one_file",
            ),
            Break(
                "a decoder that crashes is reported as a bug",
                "video/decoders.py",
                "raise MovqCrashError(",
                "raise RuntimeError(",
                "test_video.py::test_a_crash_of_the_decoder_is_an_error_of_its_file",
            ),
        ],
    ),
    16: (
        "Resume is by content",
        [
            Break(
                "a changed video counts as unchanged",
                "batch/resume.py",
                'self.digests.of(path, identity) != line["source_sha256"]',
                "False",
                "test_resume.py::test_changed_inputs_are_encoded_again_whatever_their_times_say",
            ),
            Break(
                "a damaged output counts as whole",
                "batch/resume.py",
                "if is_whole(case.tars, case.line, case.verify) else",
                "if True else",
                "test_resume.py::test_damaged_outputs_are_found_and_made_again",
            ),
            Break(
                "a refusal is kept although its cause is gone",
                "batch/resume.py",
                ' and line.get("cut") == case.wanted.get("cut")',
                "",
                "test_replace.py::test_a_verdict_goes_with_what_caused_it",
            ),
            Break(
                "a lost first frame is not made again",
                "batch/resume.py",
                "if not there(kind))",
                "if kind not in case.line.get('first_frame', {}))",
                "test_first_frame.py::test_what_is_gone_or_damaged_is_made_again_and_nothing_else",
            ),
        ],
    ),
    17: (
        "A batch reports every item",
        [
            Break(
                "failed items are left out",
                "batch/run.py",
                "        self._job.manifest.append(line)\n",
                "        if line['status'] == 'done':\n            self._job.manifest.append(line)\n",
                "test_batch.py::test_every_item_is_in_the_manifest_once_with_what_became_of_it",
            )
        ],
    ),
    18: (
        "No two inputs share an output",
        [
            Break(
                "names beyond ASCII are compared as they are written",
                "batch/names.py",
                'return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())',
                "return name",
                "test_items.py",
            )
        ],
    ),
    19: (
        "Two movq processes at once",
        [
            Break(
                "a batch does not lock its folder",
                "batch/locks.py",
                "        fcntl.flock(fd, how | fcntl.LOCK_NB)\n",
                "        pass\n",
                "test_pool.py::test_two_batches_on_one_folder_the_second_is_refused",
            )
        ],
    ),
    20: (
        "Same input, same bytes",
        [
            Break(
                "a random value is written to the file",
                "headers.py",
                'header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}',
                'header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items())) | {"made": os.urandom(4).hex()}}',
                "test_encode.py::test_same_input_same_bytes",
            )
        ],
    ),
    21: (
        "Any file name works, and none writes to the terminal",
        [
            Break(
                "names are printed without escaping",
                "errors.py",
                "c if c.isprintable() else",
                "c if True else",
                "test_cli.py::test_any_file_name_works_and_none_writes_to_the_terminal",
            ),
            Break(
                "names are given to libav without a protocol",
                "video/container.py",
                '"file:" + path',
                "path",
                "test_cli.py::test_any_file_name_works_and_none_writes_to_the_terminal",
            ),
        ],
    ),
    22: (
        "Every output says how it was made",
        [
            Break(
                "dropped frames are not recorded",
                "provenance.py",
                "frames_dropped=chunker.dropped,",
                "frames_dropped=0,",
                "test_encode.py::test_what_the_file_says",
            ),
            Break(
                "a file with impossible values is believed",
                "latents.py",
                "        _check(header, metadata)\n",
                "",
                "test_latents.py::test_files_that_lie_are_refused",
            ),
        ],
    ),
    23: (
        "Normal permissions",
        [
            Break(
                "only the owner may read an output",
                "files.py",
                "self._create(self._temp, 0o666)",
                "self._create(self._temp, 0o600)",
                "test_files.py::test_commit",
            )
        ],
    ),
    24: (
        "Strips change no latents and no frames",
        [
            Break(
                "the row below a strip is not read",
                "model/strips.py",
                "                band.below = self._next[1][:, :, :, : halo.below]\n",
                "                band.below = torch.zeros_like(self._next[1][:, :, :, : halo.below])\n",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "the row above a strip is not read",
                "model/strips.py",
                "memory_format=LAYOUT).copy_(rows)",
                "memory_format=LAYOUT).zero_()",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "the rows above the picture are not zero",
                "model/causal.py",
                "        padded[:, :, :, :above].zero_()\n",
                "        padded[:, :, :, :above].fill_(0.1)\n",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "the rows below the picture are not zero",
                "model/causal.py",
                "        padded[:, :, :, above + rows :].zero_()\n",
                "        padded[:, :, :, above + rows :].fill_(0.1)\n",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "a norm takes the statistics of one strip for those of the picture",
                "model/stages.py",
                "own = gathered.pop().merge(own)",
                "gathered.pop()",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "the past of a strip comes without the rows of its neighbours",
                "model/causal.py",
                "            cache.recall(self).move(lambda before, out: out.copy_(before), past)\n",
                "            past.zero_()\n            past[:, :, :, own_rows] = cache.recall(self).own\n",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "a strip is downsampled without the row below it",
                "model/encoder.py",
                "num_parameters(down) / area, down.rows_below)",
                "num_parameters(down) / area)",
                "test_strips.py::test_strips_are_exact",
            ),
            Break(
                "a strip is enlarged without the rows of its neighbours",
                "model/blocks.py",
                "            for row, out in ((band.above, up[:, :, :, :1]), (band.below, up[:, :, :, -1:])):\n",
                "            for row, out in ((None, up[:, :, :, :1]), (None, up[:, :, :, -1:])):\n",
                "test_decode_strips.py::test_strips_are_exact",
            ),
            Break(
                "a norm of a decoder reads other rows of the latents",
                "model/blocks.py",
                "next(latents, None), cache",
                "_own(zq), cache",
                "test_decode_strips.py::test_strips_are_exact",
            ),
            Break(
                "frames are given twice after memory ran out",
                "decode.py",
                "images[max(0, start - at) :",
                "images[0:",
                "test_decode_strips.py::test_where_memory_runs_out_later_no_frame_is_lost_or_given_twice",
            ),
            Break(
                "a gap in the spill file is used twice",
                "model/store.py",
                "self._gaps[i : i + 1] = [(start + size, end)] if end - start > size else []",
                "pass",
                "test_store.py::test_a_file_gives_back_what_it_was_given_and_uses_its_gaps_again",
            ),
        ],
    ),
    25: (
        "Nothing finished is lost, or made twice",
        [
            Break(
                "the videos of a disk that is not mounted count as gone",
                "batch/presence.py",
                "                return any(True for _ in entries)",
                "                return True",
                "test_prune.py::test_a_disk_that_is_away_takes_nothing_along",
            ),
            Break(
                "outputs are removed that no line names",
                "batch/prune.py",
                "gone = set(removable(manifest.lines.values(), present)) & set(orphans)",
                "gone = set(present) & set(orphans)",
                "test_prune.py::test_latents_that_were_never_of_the_batch_are_listed_and_stay",
            ),
            Break(
                "damaged latents are copied",
                "batch/reuse.py",
                'if whole.hexdigest() != part["sha256"]:',
                "if False:",
                "test_reuse.py::test_latents_that_are_damaged_are_not_copied",
            ),
            Break(
                "latents are replaced before another video took them over",
                "batch/reuse.py",
                "    needed = Counter(use for uses in takes for use in uses)\n",
                "    needed = Counter[tuple[str, str]]()\n",
                "test_reuse.py::test_videos_that_are_numbered_anew_in_tars",
            ),
            Break(
                "a file of others is moved as a first frame",
                "batch/reuse.py",
                "    elif not is_first_frame(source, kind or LATENT):",
                "    elif False:",
                "test_reuse.py::test_a_manifest_from_others_moves_no_files_of_others",
            ),
            Break(
                "an equal video gets the latents of what the other has become",
                "batch/run.py",
                'if line["status"] == "done" and line["source_sha256"] == twins.sha256:',
                'if line["status"] == "done":',
                "test_reuse.py::test_a_video_that_changes_before_its_turn_gives_nothing_to_its_twin",
            ),
            Break(
                "the record of another user is read",
                "batch/record.py",
                "if os.lstat(path).st_uid != os.geteuid():",
                "if False:",
                "test_record.py::test_records_that_are_not_read",
            ),
            Break(
                "a duration that describes a video cuts it",
                "batch/lists.py",
                "                found.pop(field, None)\n",
                "                pass\n",
                "test_lists.py::test_a_duration_cuts_only_with_a_start",
            ),
        ],
    ),
}


def red(tree, broken):
    """Return True if the tests fail in a copy broken so, False if they pass. Other troubles raise SystemExit."""
    file = tree / "movq_cli" / broken.file
    text = file.read_text()
    if text.count(broken.old) < 1:
        raise SystemExit(f"{broken.file} no longer has {broken.old!r}")
    file.write_text(text.replace(broken.old, broken.new))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "", "-p", "no:cacheprovider"]
        command.append(f"tests/{broken.tests}")
        environ = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, cwd=tree, env=environ, capture_output=True, text=True)
    finally:
        file.write_text(text)
    if result.returncode not in (0, 1):
        raise SystemExit(f"{broken.tests}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
    return result.returncode == 1


def main(wanted):
    started, green = time.perf_counter(), []
    print("| promise | test | how movq is broken | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        names = shutil.ignore_patterns("__pycache__")
        for part in ("movq_cli", "tests", "weights"):
            shutil.copytree(ROOT / part, tree / part, ignore=names)
        for part in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / part, tree)
        for number, (words, breaks) in PROMISES.items():
            if wanted and number not in wanted:
                continue
            for broken in breaks:
                held = red(tree, broken)
                green += [] if held else [broken]
                name = broken.tests.partition("::")[2] or broken.tests
                print(f"| {number}. {words} | `{name}` | {broken.words} | {'red' if held else 'GREEN'} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s", file=sys.stderr)
    return bool(green)


if __name__ == "__main__":
    sys.exit(main([int(number) for number in sys.argv[1:]]))
