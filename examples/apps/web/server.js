'use strict';

// node server.js USER.env [USER.env…]: each file is what `chaindock env app` prints for a
// user, and a line PASSWORD=…. PORT and FOLDER (of the listener's files) may be set.

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { Notices, User } = require('./chain');

const MOST_BYTES = 16 * 1024;
const MOST_SESSIONS = 1000;

class Refused extends Error {
    constructor(status, message) {
        super(message);
        this.status = status;
    }
}

const digest = (text) => crypto.createHash('sha256').update(String(text)).digest();

function variables(file) {
    const lines = fs.readFileSync(file, 'utf8').split('\n');
    const found = lines.map((line) => /^(?:export )?(\w+)=(?:'(.*)'|(.*))$/.exec(line));
    return Object.fromEntries(found.filter(Boolean).map(([, name, quoted, plain]) => [name, quoted ?? plain]));
}

function login(file) {
    const env = variables(file);
    if (!env.PASSWORD) {
        throw new Error(`${file}: expected a line PASSWORD=…`);
    }
    return [path.basename(file, '.env'), { password: digest(env.PASSWORD), user: new User(env) }];
}

if (process.argv.length < 3) {
    console.error('usage: node server.js USER.env [USER.env…]');
    process.exit(2);
}
const logins = new Map(process.argv.slice(2).map(login));
const sessions = new Map();
const [{ user: reader }] = logins.values();
const notices = new Notices(reader, process.env.FOLDER || '.');
const page = fs.readFileSync(path.join(__dirname, 'page.html'));

async function body(request) {
    let found = '';
    for await (const chunk of request.setEncoding('utf8')) {
        found += chunk;
        if (found.length > MOST_BYTES) {
            throw new Refused(413, 'too much');
        }
    }
    try {
        return Object(JSON.parse(found));
    } catch {
        throw new Refused(400, 'expected JSON');
    }
}

function session(request) {
    const token = /(?:^|; )session=(\w+)/.exec(request.headers.cookie || '')?.[1];
    const found = sessions.get(token);
    if (!found) {
        throw new Refused(401, 'log in first');
    }
    return { token, ...found };
}

const routes = {
    'POST /login': async (request, response) => {
        const { name, password } = await body(request);
        const found = logins.get(name);
        if (!found || !crypto.timingSafeEqual(found.password, digest(password))) {
            throw new Refused(403, 'wrong name or password');
        }
        if (sessions.size >= MOST_SESSIONS) {
            sessions.delete(sessions.keys().next().value);
        }
        const token = crypto.randomBytes(24).toString('hex');
        sessions.set(token, { name, user: found.user });
        response.setHeader('Set-Cookie', `session=${token}; HttpOnly; SameSite=Strict`);
        return { name, organization: found.user.mspId };
    },
    'POST /logout': async (request) => {
        sessions.delete(session(request).token);
        return {};
    },
    'POST /deals': async (request) => {
        const { user } = session(request);
        const { id, price } = await body(request);
        await user.offer(String(id), String(price));
        return { id };
    },
    'GET /deals': async (request, _, id) => session(request).user.deal(id),
    'GET /notices': async (request) => session(request) && notices.all,
};

async function answer(request, response) {
    const [, first, rest = ''] = request.url.split('/');
    if (request.method === 'GET' && !first) {
        response.setHeader('Content-Type', 'text/html; charset=utf-8');
        return page;
    }
    const route = routes[`${request.method} /${first}`];
    if (!route) {
        throw new Refused(404, 'no such page');
    }
    return JSON.stringify(await route(request, response, decodeURIComponent(rest)));
}

const server = http.createServer(async (request, response) => {
    try {
        response.end(await answer(request, response));
    } catch (error) {
        const details = (error.details || []).map((one) => one.message);
        response.statusCode = error.status || 502;
        response.end(JSON.stringify({ error: [error.message, ...details].join(': ') }));
    }
});

server.listen(Number(process.env.PORT || 8080), '127.0.0.1', () => {
    console.log(`http://127.0.0.1:${server.address().port}`);
});
notices.follow();
process.once('SIGTERM', () => {
    notices.close();
    logins.forEach(({ user }) => user.close());
    server.close(() => process.exit());
    server.closeAllConnections();
});
