"""Sequential decoding: one pixel per pass."""

from imagegpt.sampling.session import Decoder, Session, index_tensor


class SequentialDecoder(Decoder):
    """Samples the next pixel of each row."""

    def advance(self, session: Session, rows: list[int]) -> None:
        """See `Decoder`."""
        positions = index_tensor([[session.positions[row]] for row in rows], session.tokens.device)
        tokens = session.tokens[session.row_index(rows)].gather(1, positions)
        scores = session.compute_scores(rows, tokens, positions)
        session.write_pixels(rows, scores.argmax(dim=-1), positions)
        for row in rows:
            session.positions[row] += 1
        session.statistics.add(len(rows), len(rows), 1)
