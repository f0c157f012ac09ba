"""What is known of the instrument before it is opened: how well Whisper writes, and what can be read off its sites.

step = store.make(instrument.transcripts(run, seed))        # what it writes of each clip, and the word errors
step = store.make(instrument.phone_probe(run, seed))        # how well a linear probe reads phones off its sites
step = store.make(instrument.label_probe(run, seed, labels))
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from tqdm import tqdm

from whisper_sae.activations import store
from whisper_sae.activations.extract import sound_of
from whisper_sae.cache import Recipe, Step
from whisper_sae.data import audio, clip_table, frame_alignment, speaker_labels
from whisper_sae.experiments import recording
from whisper_sae.experiments.phone_tables import digests, phones_of
from whisper_sae.experiments.pipeline import activations, clip_means, clips, made_by, table, twin
from whisper_sae.model import languages, text, whisper_model
from whisper_sae.profiles import Profile
from whisper_sae.sae import metrics
from whisper_sae.stats import effects, probes


def transcripts(run: Profile, seed: int) -> Recipe:
    """`transcripts.csv`: what the model writes of each clip, and the word errors in it; the windows of a long clip
    are written one by one and joined; no words are counted of a clip in a language that the model does not have
    (`text.can_decode`). A multilingual model adds the language that it detects in a clip's first window,
    `detected`, and its probability, `p_detected`; a clip is decoded in the language of `languages.of_clips` all the
    same."""

    def write(folder: Path, clips: Step) -> dict:
        whisper = recording.planner(plain)
        held = recording.held(plain, seed, whisper, [recording.TRANSCRIPTS], clips)[recording.TRANSCRIPTS]
        heard, windows = table(run, clips), recording.transcripts_in(whisper, held)
        spoken = languages.of_clips(heard, run.language)
        of_clip = windows.groupby("clip")
        joined = of_clip.wrote.agg(" ".join)
        references = heard.text.where(text.can_decode(whisper, spoken), "")
        found = text.errors(references.tolist(), joined.tolist(), text.normalisers(whisper, spoken))
        found = found.assign(id=heard.id, said=heard.text, heard=joined.to_numpy())
        found = found[["id", "said", "heard", *found.columns[:-3]]]
        for column in windows.columns[2:]:
            found[column] = of_clip[column].first().to_numpy()
        found.to_csv(folder / "transcripts.csv", index=False)
        digits = sum(map(text.is_digits, heard.text))
        return {"clips": len(found), "words": int(found.words.sum()), "digit_strings": digits,
                "device": held.facts["device"]}  # fmt: skip

    # in float32 whatever the precision of a profile, and then not in one pass with its activations
    plain = run if run.precision == "float32" else replace(run, precision="float32", sites=())
    params = {
        "model": whisper_model.identity(run.model),
        "batch_windows": run.batch_windows,
        "shard_windows": run.shard_windows,
    }
    return Recipe(
        "transcripts", write, params, (recording.write,),
        needs={"clips": clips(run, seed)}, by=made_by(run, "00"), label="transcripts",
    )  # fmt: skip


def decoded_languages(
    run: Profile, whisper: whisper_model.Whisper, heard: pd.DataFrame, transcripts: pd.DataFrame | None = None
) -> pd.DataFrame:
    """How clips are decoded: a row per corpus and language, with what the corpus records, the language that they are
    decoded and scored in, its token in the prompt, the normaliser and the number of clips. With the table of
    `transcripts` of a multilingual model also the languages that it detects, the three most frequent ones."""
    known = text.languages_of(whisper)
    rows = heard.assign(recorded=languages.recorded(heard), language=languages.of_clips(heard, run.language))
    by = ["corpus", "recorded", "language"]
    found = rows.groupby(by).size().rename("clips").reset_index()
    shown = ["corpus", "recorded", "language", "token", "normaliser", "clips"]
    if transcripts is not None and "detected" in transcripts:
        rows["detected"] = rows.id.map(transcripts.set_index("id").detected)
        counts = rows.groupby(by).detected.apply(lambda codes: ", ".join(
            f"{code} {count:,}" for code, count in codes.value_counts().head(3).items()))  # fmt: skip
        found = found.merge(counts.reset_index(), on=by)
        shown.append("detected")
    token = [code if code in known else languages.ENGLISH for code in found.language]
    found["token"] = [f"<|{code}|>" if known else "none: English-only model" for code in token]
    found["normaliser"] = np.where(found.language == languages.ENGLISH, "English", "basic")
    for name in ("recorded", "language"):
        found[name] = found[name].map(lambda code: languages.named(code) or "not recorded")
    return found[shown]


def language_cautions(run: Profile, whisper: whisper_model.Whisper, heard: pd.DataFrame) -> list[str]:
    """What is wrong with the languages in which clips are decoded, a sentence each; none if nothing is."""
    known, used = text.languages_of(whisper), languages.of_clips(heard, run.language)
    recorded, name = languages.recorded(heard), Path(whisper.name).name

    def named(which: np.ndarray, codes: np.ndarray) -> str:
        counts = pd.Series(codes[which]).value_counts()
        return ", ".join(f"{languages.named(code)} {count:,}" for code, count in counts.items())

    against = (recorded != "") & (recorded != used)
    foreign = (used != languages.ENGLISH) if not known else np.zeros(len(heard), dtype=bool)
    unknown = ~np.isin(used, list(known)) if known else np.zeros(len(heard), dtype=bool)
    assumed = (recorded == "") & bool(known) & (not run.language)
    of = f"of {len(heard):,} clips"
    cautions = {
        f"The profile sets language = {run.language!r}, and the corpus records another one for {against.sum():,} {of}: "
        f"{named(against, recorded)}. They are decoded and scored as the profile says.": against,
        f"{name} is an English-only model, and {foreign.sum():,} {of} are in another language: "
        f"{named(foreign, used)}. Their word errors are not counted, and the decoder is not given their text; a "
        "multilingual model has their language.": foreign,
        f"{name} has no token for the language of {unknown.sum():,} {of}: {named(unknown, used)}. They are "
        "decoded as English; their word errors are not counted, and the decoder is not given their text.": unknown,
        f"For {assumed.sum():,} {of} no language is recorded: they are decoded as English; the field `language` of "
        "a profile sets another one.": assumed,
    }
    return [sentence for sentence, which in cautions.items() if which.any()]


def word_errors(wrote: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Word error rate of clips with speech, in all or in each group of a column: a 95 % interval over speakers.

    Groups of a label are those of a corpus where there are several, since corpora differ in what is read, and how well
    it was recorded."""
    spoken, rows = wrote[wrote.words > 0], []
    groups = [("all", spoken)]
    if by is not None:
        spoken = spoken[spoken[by] != ""]
        names = spoken[by].astype(str)
        if by not in ("split", "corpus") and "corpus" in spoken and spoken.corpus.nunique() > 1:
            names = spoken.corpus + ": " + names
        groups = spoken.groupby(names)
    for name, group in groups:
        voices = group.groupby(group.speaker.where(group.speaker != "", group.id))[["errors", "words"]].sum()
        low, high = metrics.ratio_interval(voices.errors.to_numpy(), voices.words.to_numpy())
        rate = voices.errors.sum() / voices.words.sum()
        rows.append((by or "", name, len(voices), len(group), int(voices.words.sum()), rate, low, high))
    return pd.DataFrame(rows, columns=["by", "group", "speakers", "clips", "words", "WER", "WER_low", "WER_high"])


def change_at_phones(
    whisper: whisper_model.Whisper, heard: pd.DataFrame, told: pd.DataFrame, seed: int
) -> pd.DataFrame:
    """How much the sound changes around the start of the phones of each manner: (manner, offset in mel frames).

    "chance" is as many moments drawn at random from the same clips.
    """
    rng, lines, kinds = np.random.default_rng(seed), [], []
    for clip, rows in told.groupby("clip"):
        mel = whisper_model.mel(whisper, [audio.excerpt(heard.path[clip], 0, whisper.window)])[0].cpu().numpy()
        anywhere = rng.uniform(rows.start.min(), rows.end.max(), len(rows))
        for kind, moments in [*rows.groupby("manner").start, ("chance", anywhere)]:
            lines.append(frame_alignment.change_around(mel, moments))
            kinds += [kind] * len(moments)
    return pd.DataFrame(np.concatenate(lines)).groupby(kinds).mean()


def speakers_apart(heard: pd.DataFrame, told: pd.DataFrame) -> bool:
    """Whether phones are told of two training speakers or more, and of another: what `phone_probe` needs."""
    clips_told = heard.loc[told["clip"].unique()]
    train = clips_told.split == "train"
    return clips_told.speaker[train].nunique() > 1 and not train.all()


def phone_probe(run: Profile, seed: int, fitted: int = 5_000, asked: int = 10_000) -> Recipe:
    """`read.csv`: how many phones a linear probe reads right, for each speaker it never met and each of its inputs.

    Inputs: log-mel of the frame; log-mel with 80 ms around it, turned down to as many principal directions as the model
    is wide; each recorded encoder site; the same of the untrained twin; and the commonest phone, said every time. It is
    fitted on at most `fitted` frames of the training speakers and asked about at most `asked` of all others.
    """
    other = twin(run)

    def read(folder: Path, clips: Step, activations: Step, untrained: Step) -> dict:
        heard, windows = table(run, clips), activations.table("windows.csv")
        stored, nothing = store.Activations(activations.path), store.Activations(untrained.path)
        whisper = whisper_model.load(run.model, run.device)
        window = np.repeat(np.arange(len(windows)), stored.spans[:, 2])  # (row,)
        truth = _phone_of_each_row(run, heard, windows, stored.spans[:, 2])
        clip = windows["clip"].to_numpy()[window]
        speaker = heard.speaker.to_numpy()[clip]
        known, train = truth != "", (heard.split == "train").to_numpy()[clip]
        rng = np.random.default_rng(seed)
        fit_on, ask = (
            np.sort(rng.permutation(np.flatnonzero(known & side))[:most])
            for side, most in ((train, fitted), (~train, asked))
        )
        if not len(fit_on) or not len(ask):
            raise frame_alignment.BadPhones(
                "phones: no corpus of this profile tells the phones of both kinds of speakers"
            )
        mels = _mel_rows(whisper, heard, windows)
        turned = PCA(whisper.config.d_model, random_state=seed).fit(probes.with_context(mels, window, 4, fit_on))
        inputs = {
            ("log-mel", "this frame"): lambda rows: mels[rows],
            ("log-mel", "±80 ms"): lambda rows: turned.transform(probes.with_context(mels, window, 4, rows)),
        }
        for label, held in (("trained", stored), ("untrained", nothing)):
            for site in stored.sites:
                inputs[label, site] = lambda rows, held=held, site=site: held.rows(site).take(rows).numpy()
        commonest = pd.Series(truth[fit_on]).mode()[0]
        told = {("chance", "commonest phone"): np.full(len(ask), commonest)}
        for name, take in tqdm(inputs.items(), desc="reading phones", unit=" probes"):
            probe = probes.tuned(take(fit_on), truth[fit_on], speaker[fit_on], seed=seed)
            told[name] = probe.predict(take(ask))
        rows = [
            {"input": kind, "site": site, "speaker": who, "right": share}
            for (kind, site), said in told.items()
            for who, share in probes.by_speaker(said == truth[ask], speaker[ask]).items()
        ]
        pd.DataFrame(rows).to_csv(folder / "read.csv", index=False)
        return {"phones": len(set(truth[fit_on])), "fitted": len(fit_on), "asked": len(ask)}

    return Recipe(
        "phone-probe", read, {"seed": seed, "fitted": fitted, "asked": asked, "told": digests(run)},
        needs={"clips": clips(run, seed), "activations": activations(run, seed), "untrained": activations(other, seed)},
        by=made_by(run, "00"), label="phone probe",
    )  # fmt: skip


def _phone_of_each_row(run: Profile, heard: pd.DataFrame, windows: pd.DataFrame, count: np.ndarray) -> np.ndarray:
    """The phone at the centre of each stored frame, "" where none is: (row,) of `count` frames a window."""
    told = dict(list(phones_of(run, heard).groupby("clip")))
    found = []
    for number, frames_here in enumerate(count):
        clip, first = windows.loc[number, ["clip", "first"]]
        moments = clip_table.moments(np.arange(frames_here), first)
        here = told.get(clip)
        row = frame_alignment.at(here, moments) if here is not None else np.full(frames_here, -1)
        names = here.phone.to_numpy(str) if here is not None else np.array([""])
        found.append(np.where(row >= 0, names[row], ""))
    return np.concatenate(found)


def _mel_rows(whisper: whisper_model.Whisper, heard: pd.DataFrame, windows: pd.DataFrame) -> np.ndarray:
    """The log-mel under each valid frame of every window, both of its halves: (row, 2 · mel bins)."""
    found = []
    for number in tqdm(range(len(windows)), desc="log-mel", unit=" windows"):
        sound = sound_of(heard, windows, number)
        valid = -(-len(sound) // whisper.samples_a_frame)
        mel = whisper_model.mel(whisper, [sound])[0].T.cpu().numpy()  # (mel frame, mel bin)
        found.append(mel[: 2 * valid].reshape(valid, -1))
    return np.concatenate(found)


MOST_LABELS = 4
"""A probe is asked about so many labels, for the sake of time."""


def askable(heard: pd.DataFrame, likes: dict[str, list[str]] | None = None) -> tuple[dict[str, list[str]], dict]:
    """The labels that a probe can be asked about, with what else makes speakers alike; and why others cannot.

    Labels are those of `speaker_labels.choose` with two groups of two speakers, MOST_LABELS of them: the first of those
    that are asked by tests, too, then of the others. Where speakers come from several
    corpora, likes are those of a corpus. Else they are those of `likes`, a label's others, where each of its groups
    has two speakers in every such group.
    """
    chosen, found, refused = speaker_labels.choose(heard), {}, {}
    who = effects.named_as(heard.speaker)
    rank = dict(zip(chosen.report.label, chosen.report.asked != "yes", strict=True))
    for label in sorted(chosen.values, key=rank.get):
        column = chosen.values[label]
        value, why = speaker_labels.for_probe(column.to_numpy(), who, chosen.corpus)
        others = ["corpus"] if chosen.corpus is not None else [o for o in (likes or {}).get(label, []) if o in heard]
        cast = heard.assign(**{label: value})[value != ""].drop_duplicates("speaker")
        crossed = cast.groupby([*others, label]).size().unstack(label, fill_value=0) if others else None
        if why or len(found) == MOST_LABELS:
            refused[label] = why or f"{MOST_LABELS} labels are asked, for the sake of time"
        else:
            found[label] = others if chosen.corpus is not None or (others and crossed.min(axis=None) > 1) else []
    return found, refused


def labelled(clips: pd.DataFrame, label: str, others: list[str]) -> tuple:
    """For a probe: which clips have a label that can be asked about, (clip,) bool; and of these the label, the speaker,
    what `others` make alike, or None, and within what is scored: the corpus, where it is that, or None."""
    chosen = speaker_labels.choose(clips[[name for name in ("speaker", "corpus", label) if name in clips]])
    column = chosen.values[label].to_numpy() if label in chosen.values else np.full(len(clips), "")
    who = effects.named_as(clips.speaker)
    value, why = speaker_labels.for_probe(column, who, chosen.corpus if others == ["corpus"] else None)
    if why:
        raise ValueError(f"{label}: {why}")
    here = value != ""
    alike = clips[here][others].astype(str).agg(" ".join, axis=1).to_numpy() if others else None
    return here, value[here], who[here], alike, alike if others == ["corpus"] else None


def by_speaker(right: np.ndarray, told, speakers, within=None) -> pd.DataFrame:
    """What `probes.unheard` says of clips, a row a speaker: speaker, told (its label), stratum and its share right."""
    rows = pd.DataFrame(
        {"speaker": speakers, "told": told, "stratum": "" if within is None else within, "right": right}
    )
    return rows.groupby("speaker").agg({"told": "first", "stratum": "first", "right": "mean"}).reset_index()


def label_probe(run: Profile, seed: int, labels: dict[str, list[str]]) -> Recipe:
    """`read.csv`: how often each speaker's label is read right off the means of its clips, by probes that never met the
    speaker; from log-mel and from each encoder site. `labels` names, for each, what else makes speakers alike."""

    def read(folder: Path, clips: Step, activations: Step) -> dict:
        heard = table(run, clips)
        means = {"log-mel": _mel_means(run, heard, activations)}
        means |= {site: clip_means(run, clips, activations, site) for site in activations.facts["sites"]}
        columns, parts = ["label", "site", "speaker", "told", "stratum", "right"], []
        for site, x in tqdm(means.items(), desc="reading labels", unit=" inputs"):
            known = np.isfinite(x).all(axis=1)
            for label, others in labels.items():
                here, *asked, within = labelled(heard[known], label, others)
                right = probes.unheard(x[known][here], *asked, seed=seed)
                parts.append(by_speaker(right, *asked[:2], within).assign(label=label, site=site))
        table_ = pd.concat([pd.DataFrame(columns=columns), *parts])[columns]
        table_.to_csv(folder / "read.csv", index=False)
        return {"labels": list(labels), "inputs": len(means)}

    return Recipe(
        "label-probe", read, {"seed": seed, "labels": labels},
        needs={"clips": clips(run, seed), "activations": activations(run, seed)},
        by=made_by(run, "00"), label="label probe",
    )  # fmt: skip


def _mel_means(run: Profile, heard: pd.DataFrame, activations: Step) -> np.ndarray:
    """The mean log-mel of each clip's frames of speech: (clip, 2 · mel bins), NaN where it has none."""
    windows, held = activations.table("windows.csv"), store.Activations(activations.path)
    mels = _mel_rows(whisper_model.load(run.model, run.device), heard, windows)
    speaking = held.valid_kinds() == clip_table.SPEECH
    clip = np.repeat(windows["clip"].to_numpy(), held.spans[:, 2])
    return pd.DataFrame(mels[speaking]).groupby(clip[speaking]).mean().reindex(range(len(heard))).to_numpy()
