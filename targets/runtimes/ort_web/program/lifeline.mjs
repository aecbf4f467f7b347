// Ends the process, whatever it is doing, when the other end of a pipe is closed: only the parent holds it.
import { Socket } from "node:net";
import { workerData } from "node:worker_threads";

const end = () => process.kill(process.pid, "SIGKILL");
new Socket({ fd: workerData, readable: true, writable: false }).on("close", end).on("error", end).resume();
