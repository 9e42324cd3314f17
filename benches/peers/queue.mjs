// Jobs through graphile-worker or BullMQ, for the rows of the queue: node queue.mjs graphile|bullmq URL CONCURRENCY
// A worker process and this one, as ado has a worker and a client. Reads a line of JSON at a time from stdin and answers
// with one: {"rate": N} -> {"seconds": from the first submission to the last end}; {"starts": N, "everyMs": M} ->
// {"pairs": [[asked, began], ...]}, nanoseconds of the machine's monotonic clock.
import { fork } from 'node:child_process'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const [kind, url, concurrency, role] = process.argv.slice(2)
// Installed where the script that starts this was told to.
const require = createRequire(process.env.ADO_PEERS_NODE_MODULES + '/')
const now = () => process.hrtime.bigint().toString()
const began = async (payload) => process.send(payload.stamp ? now() : 'done')

const kinds = {
  graphile: {
    async work() {
      const { run } = require('graphile-worker')
      const quiet = new (require('graphile-worker').Logger)(() => () => {})
      await run({
        connectionString: url,
        concurrency: Number(concurrency),
        maxPoolSize: 12,
        noHandleSignals: true,
        logger: quiet,
        taskList: { job: began },
      })
    },
    async client() {
      const { makeWorkerUtils } = require('graphile-worker')
      const utils = await makeWorkerUtils({ connectionString: url })
      await utils.migrate()
      return {
        one: () => utils.addJob('job', { stamp: true }),
        many: (count) => utils.addJobs(Array.from({ length: count }, () => ({ identifier: 'job', payload: {} }))),
      }
    },
  },
  bullmq: {
    connection() {
      // Of a server of this machine: a socket.
      const { hostname, port, pathname } = new URL(url)
      const server = hostname ? { host: hostname, port: Number(port) } : { path: pathname }
      return { ...server, maxRetriesPerRequest: null }
    },
    async work() {
      const { Worker } = require('bullmq')
      const options = { connection: this.connection(), concurrency: Number(concurrency) }
      await new Worker('jobs', (job) => began(job.data), options).waitUntilReady()
    },
    async client() {
      const { Queue } = require('bullmq')
      const queue = new Queue('jobs', { connection: this.connection() })
      await queue.waitUntilReady()
      return {
        one: () => queue.add('job', { stamp: true }),
        many: (count) => queue.addBulk(Array.from({ length: count }, () => ({ name: 'job', data: {} }))),
      }
    },
  },
}

if (role === 'work') {
  process.on('disconnect', () => process.exit())
  await kinds[kind].work()
  process.send('ready')
} else {
  const client = await kinds[kind].client()
  const worker = fork(fileURLToPath(import.meta.url), [kind, url, concurrency, 'work'])
  worker.on('exit', () => process.exit(1))
  let heard
  worker.on('message', (message) => heard(message))
  await new Promise((resolve) => (heard = resolve))
  console.log('{}')
  for await (const line of createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line)
    if (asked.rate) {
      const first = process.hrtime.bigint()
      let left = asked.rate
      const all = new Promise((resolve) => (heard = () => --left === 0 && resolve()))
      await client.many(asked.rate)
      await all
      console.log(JSON.stringify({ seconds: Number(process.hrtime.bigint() - first) / 1e9 }))
    } else {
      const pairs = []
      for (let start = 0; start < asked.starts; start++) {
        const done = new Promise((resolve) => (heard = resolve))
        const from = now()
        await client.one()
        pairs.push([from, await done])
        await new Promise((resolve) => setTimeout(resolve, asked.everyMs))
      }
      console.log(JSON.stringify({ pairs }))
    }
  }
  process.exit()
}
