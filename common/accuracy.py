"""Loss and accuracies of a classifier, counted batch by batch."""

import torch
from torch.nn import functional as F

from common.processes import processes, sum_over_processes

UNEVEN = 2  # times as many images has the largest class as the smallest


class Tally:
    """Counts what a network answers for some images."""

    def __init__(self, device):
        self.sums = torch.zeros(5, device=device)  # loss, top-1, top-5, images, more than 5 classes
        self.classes = None  # of each class: images, right answers, answers

    def add(self, logits, labels):
        """logits: N x classes; labels: int64, N."""
        loss = F.cross_entropy(logits, labels, reduction="sum")
        answers = logits.topk(min(5, logits.shape[1])).indices
        ranked = answers == labels[:, None]
        self.sums[:3] += torch.stack((loss, ranked[:, 0].sum(), ranked.sum()))
        self.sums[3] += len(labels)
        self.sums[4] += logits.shape[1] > 5  # a process may have no batch that says it
        if self.classes is None:
            self.classes = self.sums.new_zeros(3, logits.shape[1])
        one, right = torch.ones_like(labels, dtype=torch.float), ranked[:, 0].float()
        for row, classes, counts in zip(
            self.classes, (labels, labels, answers[:, 0]), (one, right, one)
        ):
            row.index_add_(0, classes, counts)  # which does not wait for a GPU

    def figures(self, batches):
        """{"loss": mean cross-entropy, "top1", "top5", "balanced", "unanswered"} over all
        processes; accuracies in %. batches: all that were counted, in all processes.

        "top5" is missing where there are 5 classes or fewer. "balanced", the mean of the accuracies
        on the images of each class, is there where classes are uneven; "unanswered", how many
        classes that have images are never answered, where there are any.
        """
        if processes()[1] > 1:
            count = int(batches.split.labels.max()) + 1
            self.classes = (
                self.sums.new_zeros(3, count)
                if self.classes is None
                else (self.classes[:, :count].contiguous())
            )
            sum_over_processes(self.classes)
        sum_over_processes(self.sums)
        loss, top1, top5, count, more_than_5 = self.sums.tolist()
        figures = {"loss": loss / count, "top1": 100 * top1 / count}
        if more_than_5:
            figures["top5"] = 100 * top5 / count
        images, right, answered = self.classes[:, self.classes[0] > 0].cpu().double()
        if images.max() >= UNEVEN * images.min():
            figures["balanced"] = 100 * (right / images).mean().item()
        if unanswered := int((answered == 0).sum()):
            figures["unanswered"] = unanswered
        return figures
