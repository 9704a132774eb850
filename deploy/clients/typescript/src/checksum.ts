// Counts and digests a received stream, and compares it with what the command wrote.

import { createHash, type Hash } from "node:crypto";

import { DigestMismatch } from "./errors.js";

/** The count and the digest of a stream up to now. */
export class Checksum {
  // The digest covers the whole stream, so it is not compared without its beginning or after a gap.
  #sha256: Hash | undefined;
  // Of an agent, whose text is made of events: the offsets count the events, and the text is not counted.
  #counts = true;
  #partial = 0;
  #repeated = 0;

  constructor(
    readonly name: string,
    /** The offset after the last byte that was received or lost. */
    public end: number,
  ) {
    this.#sha256 = end === 0 ? createHash("sha256") : undefined;
  }

  /**
   * The stream is the text of an agent, from the beginning of the event at the offset on. If the event's text was cut by a
   * broken connection, its beginning is repeated.
   */
  resumeAgent(): void {
    this.#counts = false;
    this.#repeated += this.#partial;
    this.#partial = 0;
  }

  /** Takes the bytes of a message. Returns those that are new. */
  take(data: Buffer, end: number): Buffer {
    if (this.#counts) {
      if (this.end + data.length !== end) {
        throw new DigestMismatch(
          `${data.length} bytes of ${this.name} came after offset ${this.end}, but end at ${end}: a part was lost or repeated`,
        );
      }
      this.#sha256?.update(data);
      this.end = end;
      return data;
    }
    const skipped = Math.min(this.#repeated, data.length);
    this.#repeated -= skipped;
    this.#partial += data.length;
    if (end > this.end) this.#moveTo(end);
    return data.subarray(skipped);
  }

  /** Takes a gap. */
  skip(start: number, end: number): void {
    if (start !== this.end || !(end > start)) {
      throw new DigestMismatch(`a gap in ${this.name} from ${start} to ${end} came after offset ${this.end}`);
    }
    this.#moveTo(end);
    this.#sha256 = undefined;
  }

  #moveTo(end: number): void {
    this.end = end;
    this.#partial = 0;
    this.#repeated = 0;
  }

  /** Compares the stream with the count and the digest that the service computed where the command ran. */
  check(nBytes: number | null, sha256: string | null): void {
    if (!this.#counts) return;
    if (nBytes !== null && nBytes !== this.end) {
      throw new DigestMismatch(`${this.end} bytes of ${this.name} arrived, but the command wrote ${nBytes}`);
    }
    if (this.#sha256 === undefined || sha256 === null || sha256 === "pending") return;
    const received = this.#sha256.copy().digest("hex");
    if (received !== sha256) {
      throw new DigestMismatch(
        `the SHA-256 of the received ${this.name} is ${received}, that of what the command wrote is ${sha256}`,
      );
    }
  }
}
