// Output that waits for the program, bounded in bytes.

import type { Gap, Output } from "./results.js";
import { Signal } from "./signal.js";

/** Output that waits, in bytes. When it is reached, nothing is read from the connection, and the command waits. */
const MAX_WAITING = 1 << 20;

export type Item = Output | Gap;

const sizeOf = (item: Item): number => ("data" in item ? item.data.length : 0);

/** Output in order, until the end. */
export class OutputQueue {
  #items: Item[] = [];
  #size = 0;
  #ended = false;
  #discarding = false;
  #filled = new Signal();
  #emptied = new Signal();

  /**
   * Adds an item, and waits until there is room for the next one. This is where back-pressure begins. Returns false if
   * output is discarded.
   */
  async put(item: Item): Promise<boolean> {
    if (this.#discarding) return false;
    this.#items.push(item);
    this.#size += sizeOf(item);
    this.#filled.set();
    while (this.#size >= MAX_WAITING) {
      this.#emptied.clear();
      await this.#emptied.wait();
    }
    return true;
  }

  /** The next item; `undefined` at the end. */
  async get(): Promise<Item | undefined> {
    for (;;) {
      const item = this.#items.shift();
      if (item !== undefined) {
        this.#size -= sizeOf(item);
        this.#emptied.set();
        return item;
      }
      if (this.#ended) return undefined;
      this.#filled.clear();
      await this.#filled.wait();
    }
  }

  /** Waits until every item was taken. */
  async drained(): Promise<void> {
    while (this.#items.length > 0) {
      this.#emptied.clear();
      await this.#emptied.wait();
    }
  }

  /** Adds the end. Items before it can still be taken. */
  end(): void {
    this.#ended = true;
    this.#filled.set();
  }

  /** Drops what is still to come, and returns what waits. */
  discard(): Item[] {
    this.#discarding = true;
    const waiting = this.#items;
    this.#items = [];
    this.#size = 0;
    this.#emptied.set();
    return waiting;
  }
}
