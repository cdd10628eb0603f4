CREATE TABLE kv (
	key STRING NOT NULL,
	value STRING NULL,
	FAMILY "primary" (key, value)
);

INSERT INTO kv (key, value, tags) VALUES
	('plain', 'it''s', NULL),
	(e'm\u00FCsli', e'\U0001F41F\'\x01\\', ARRAY['a':::STRING]),
	('bytes', '\x4100', NULL);
UPSERT INTO kv (key, value) VALUES ('b', b'A\x00');
