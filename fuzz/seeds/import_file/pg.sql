\restrict abc
SET client_encoding = 'UTF8';
-- a comment
CREATE FUNCTION f() AS $fn$ it's; $fn$;
INSERT INTO public."kv" ("value", id, key) VALUES ('v', 1e-5, X'6b') ON CONFLICT DO NOTHING;
COPY public.other (a) FROM stdin;
x
\.
COPY public.kv (id, key, value) FROM stdin;
1	k\t1	\\x6869
2	k2	\101\x42\N
\.
