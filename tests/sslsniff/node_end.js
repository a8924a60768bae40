// SPDX-License-Identifier: BSD-2-Clause
//
// Ends of TLS connections through Node.js, which keeps TLS apart from the socket, for tests/sslsniff_programs.rs.
//
//     node_end.js proxy CERT PORT TO        passes each request on to port TO, each by a connection of its own, until
//                                           it is ended
//     node_end.js many PORT PATH COUNT      waits for a line, asks for PATH0, PATH1, … at once, each by a connection of
//                                           its own, and prints the answers
const fs = require('fs');
const https = require('https');

const get = (port, path, done) => https.get(
    {host: '127.0.0.1', port, path, rejectUnauthorized: false, agent: false}, answer => {
        let text = '';
        answer.on('data', part => text += part);
        answer.on('end', () => done(text));
    });

const ends = {
    proxy(cert, port, to) {
        const pem = fs.readFileSync(cert);
        https.createServer({key: pem, cert: pem}, (request, answer) => get(to, request.url, text => {
            answer.setHeader('Connection', 'close');
            answer.end(text);
        })).listen(port, '127.0.0.1', () => console.log('listening'));
    },
    many(port, path, count) {
        process.stdin.once('data', () => {
            const texts = [];
            for (let i = 0; i < count; i++) {
                get(port, path + i, text => {
                    texts.push(text);
                    if (texts.length == count) {
                        console.log(JSON.stringify(texts.sort()));
                        process.exit();
                    }
                });
            }
        });
    },
};

const [end, ...args] = process.argv.slice(2);
ends[end](...args);
