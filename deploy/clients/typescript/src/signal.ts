// An event that may be waited for.

/** Wakes those who wait when it is set. */
export class Signal {
  #set = false;
  #waiting: (() => void)[] = [];

  get isSet(): boolean {
    return this.#set;
  }

  set(): void {
    this.#set = true;
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }

  clear(): void {
    this.#set = false;
  }

  /** Waits until it is set, or for this time. Returns whether it is set. */
  async wait(withinMs?: number): Promise<boolean> {
    if (this.#set) return true;
    await new Promise<void>((resolve) => {
      const timer = withinMs === undefined ? undefined : setTimeout(done, withinMs);
      const waiting = this.#waiting;
      function done(): void {
        clearTimeout(timer);
        const at = waiting.indexOf(done);
        if (at >= 0) waiting.splice(at, 1);
        resolve();
      }
      waiting.push(done);
    });
    return this.#set;
  }
}
