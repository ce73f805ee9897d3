# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""BibTeX entries of the methods in a benchmark."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reference:
    """A published paper, with its number on arXiv. The year is that of the publication."""

    key: str
    title: str
    authors: str
    year: int
    arxiv: str
    venue: str
    is_journal: bool = False

    def to_bibtex(self) -> str:
        """Return the BibTeX entry. Braces keep the capital letters of the title."""
        kind, venue_field = ("article", "journal") if self.is_journal else ("inproceedings", "booktitle")
        return (
            f"@{kind}{{{self.key},\n"
            f"  title = {{{{{self.title}}}}},\n"
            f"  author = {{{self.authors}}},\n"
            f"  {venue_field} = {{{self.venue}}},\n"
            f"  year = {{{self.year}}},\n"
            f"  eprint = {{{self.arxiv}}},\n"
            "  archivePrefix = {arXiv}\n"
            "}\n"
        )


ANOMALIB = Reference(
    "anomalib",
    "Anomalib: A Deep Learning Library for Anomaly Detection",
    "Akcay, Samet and Ameln, Dick and Vaidya, Ashwin and Lakshmanan, Barath and Ahuja, Nilesh and Genc, Utku",
    2022,
    "2202.08341",
    "IEEE International Conference on Image Processing (ICIP)",
)
ADVERSARIAL_LOSS = Reference(
    "adversarial_loss",
    "Few-Shot Anomaly Detection with Adversarial Loss for Robust Feature Representations",
    "Lee, Jae Young and Lee, Wonjun and Choi, Jaehyun and Lee, Yongkwi and Yoon, Young Seog",
    2023,
    "2312.03005",
    "British Machine Vision Conference (BMVC)",
)
REFERENCES = {
    "CoftAD": Reference(
        "coftad",
        "COFT-AD: COntrastive Fine-Tuning for Few-Shot Anomaly Detection",
        "Liao, Jingyi and Xu, Xun and Nguyen, Manh Cuong and Goodge, Adam and Foo, Chuan Sheng",
        2024,
        "2402.18998",
        "IEEE Transactions on Image Processing",
        is_journal=True,
    ),
    "RegAD": Reference(
        "regad",
        "Registration based Few-Shot Anomaly Detection",
        "Huang, Chaoqin and Guan, Haoyan and Jiang, Aofan and Zhang, Ya and Spratling, Michael and Wang, Yan-Feng",
        2022,
        "2207.07361",
        "European Conference on Computer Vision (ECCV)",
    ),
    "UniAD": Reference(
        "uniad",
        "A Unified Model for Multi-class Anomaly Detection",
        "You, Zhiyuan and Cui, Lei and Shen, Yujun and Yang, Kai and Lu, Xin and Zheng, Yu and Le, Xinyi",
        2022,
        "2206.03687",
        "Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    "Patchcore": Reference(
        "patchcore",
        "Towards Total Recall in Industrial Anomaly Detection",
        'Roth, Karsten and Pemula, Latha and Zepeda, Joaquin and Sch{\\"o}lkopf, Bernhard and Brox, Thomas and '
        "Gehler, Peter",
        2022,
        "2106.08265",
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
    ),
    "Padim": Reference(
        "padim",
        "PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization",
        "Defard, Thomas and Setkov, Aleksandr and Loesch, Angelique and Audigier, Romaric",
        2021,
        "2011.08785",
        "International Conference on Pattern Recognition (ICPR)",
    ),
    "AnomalyDINO": Reference(
        "anomalydino",
        "AnomalyDINO: Boosting Patch-based Few-shot Anomaly Detection with DINOv2",
        "Damm, Simon and Laszkiewicz, Mike and Lederer, Johannes and Fischer, Asja",
        2025,
        "2405.14529",
        "IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)",
    ),
}


def find_references(config: Mapping[str, Any]) -> list[Reference]:
    """Return the references of anomalib and of all methods in a configuration. Other methods have no own entry.

    Args:
        config (Mapping[str, Any]): Settings of a benchmark. ``methods`` contains one specification per method.
    """
    references = [ANOMALIB]
    for spec in config.get("methods", {}).values():
        name = str(spec["class_path"]).rpartition(".")[2]
        reference = REFERENCES.get(name)
        if reference is not None and reference not in references:
            references.append(reference)
    if "adversarial" in str(config).lower():  # an argument of RegAD and UniAD, or a callback in the overrides
        references.append(ADVERSARIAL_LOSS)
    return references
