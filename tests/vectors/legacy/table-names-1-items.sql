BEGIN TRANSACTION;
CREATE TABLE compromised_marks (
	key_id BLOB NOT NULL, 
	table_name TEXT NOT NULL, 
	items_found INTEGER NOT NULL, 
	high_water INTEGER, 
	replaced_before INTEGER NOT NULL, 
	recorded_at TEXT NOT NULL, 
	PRIMARY KEY (key_id, table_name), 
	CONSTRAINT ck_compromised_marks_key_id CHECK (length(key_id) = 16), 
	CONSTRAINT ck_compromised_marks_items_found CHECK (items_found >= 0), 
	CONSTRAINT ck_compromised_marks_high_water CHECK (high_water >= 0), 
	CONSTRAINT ck_compromised_marks_replaced_before CHECK (replaced_before >= 0)
)
 STRICT

;
CREATE TABLE integer_sequenced_items (
	sequence_id BLOB NOT NULL, 
	position BIGINT NOT NULL, 
	topic TEXT NOT NULL, 
	data BLOB NOT NULL, 
	key_id BLOB, 
	PRIMARY KEY (sequence_id, position)
);
INSERT INTO "integer_sequenced_items" VALUES(X'926C556261A0580F9C560F4C678E1527',0,'tests.fixtures.sealed_shops:Noted',X'01030401A22EC7C75C7A749CE91A2C2C968FB9F2FBA1A1D0797507F9D0DDAB3515B99C5BF7EA47B522F07A27808B87C09F3CFE6CC1D7DE3B5B54A3FD88409A051015C30FE14606542088F324057553023F619B55E97BB15775EFAB934E1DF4DA184585D2EFF129AA44E3A0F62B5C7E623ECCA3AD6102F02BFEBBF1A6063545D9119DCF79751C44B3DA958711B6E193E2582CED0E1EAB8F0A9F6DD622F171D2CA5775E9',X'01A22EC7C75C7A749CE91A2C2C968FB9');
INSERT INTO "integer_sequenced_items" VALUES(X'926C556261A0580F9C560F4C678E1527',1,'tests.fixtures.sealed_shops:Noted',X'01030401A22EC7C75C7A749CE91A2C2C968FB9106E5503969F3BA7EB7A561C22E5A019D34EEA026AF6EB3683AB086156D41E56394310A1E6DA3CB73C0D1EA7AB6B635457FEB74D6259D3465CEF70686ECC48BBE2ACE9C818608CBCBFB69330504924804484A9B1FE2AA4196CBB2AC0197BC28599A13D867290E24CB3159CC35BA1B5D6FA43C6262C6E6F05813CD11865EEB558697ED50EBB669A74B2DF03174F8E6760',X'01A22EC7C75C7A749CE91A2C2C968FB9');
INSERT INTO "integer_sequenced_items" VALUES(X'A0AFAD68E7A6569380F7855BBC9A9CAF',0,'tests.fixtures.sealed_shops:Noted',X'01030401A22EC7C72E7D31B71015ADC7DA321DAAA4B8ED4EC380410E5B908C0DABF89D1D8C0E97D43034576EC19F59991D70CA8473C7DD707F8CE6249C78034CEEC7CB14882252269C2ECCE798623B1FB6476EBB0D48046FC6B594E5B73140E0AA2D3AD29F237FFA2142A34287FC94300E099A4C457CED2B8659AAA91304563B8F0DFCD17CE48761BB75BC26CAA4BEEF6A00ECC2519978357A2B9D91E87E2C0DCFD6A0A41DA486FFDB7CFC87BF7D1456E12220',X'01A22EC7C72E7D31B71015ADC7DA321D');
INSERT INTO "integer_sequenced_items" VALUES(X'A0AFAD68E7A6569380F7855BBC9A9CAF',1,'tests.fixtures.sealed_shops:Noted',X'01030401A22EC7C72E7D31B71015ADC7DA321DB2CAA06BF454F265C3D3984057B4FB148917DDFAB3691E28033D49D990199F828178B75ABAD5668F37B286FFF9055326798174E8134809945C1053C4073899DE0E028491FAA8510AE3ECFAD9CF042EED41E9E260D908E7B479CF52903F33AA49FFE8F29D234A6B9DA6F36E91C406428DF7A641F2EA60A91EA37104E885CB49B7C8DAD18BDD4BF948B744D2109DCB292FFC40B0F79DD224C1D291F9DAF76A6565',X'01A22EC7C72E7D31B71015ADC7DA321D');
INSERT INTO "integer_sequenced_items" VALUES(X'9563888ACCAF5695BFCCE4714F4C2889',0,'tests.fixtures.sealed_shops:Noted',X'01030401A22EC7C74B7F55BD55AEAA0819F4086EDB8C49D8E359D1FBF40C921F6B25816D9BCE789097EF0D341004F58D45A93C35DF0D7B073D63BDC7C6430BCCCBCD4D2D91C553C1EF3709CA63AB54BB055906BDB4178B910432CF5665FA67BD8094329A225D919AB8B969F6C97FFDA9BD4E0BD468862DC499EE34128ACDB41AABADFE00E937CC801CC9693A9E50B190153C30F9D85A07A0E09402D88668BCE26724F03B1C9B954BF5F10A746D4ACD6CBFFAB1',X'01A22EC7C74B7F55BD55AEAA0819F408');
INSERT INTO "integer_sequenced_items" VALUES(X'9563888ACCAF5695BFCCE4714F4C2889',1,'tests.fixtures.sealed_shops:Noted',X'01030401A22EC7C74B7F55BD55AEAA0819F40839954EB93DF64DDF1AD4EE86477BBFE295EA02C55E2657F094D003BF98DEE7BDB9A9D10D84AE9648F7B5D139405FE0F4F22CFC8C296E216F47CCF42044651E9ADA8E7E336634CFBCDF4240547E90D89DEF1A87A0475997A3EDA0CD7ED15ADAC8CEE2F1520130FB1E63359F63A2D533E16F508CC39DEEC38B5680A711DCBDEB67719DD284B624D00B054AF50B94D9B6D47AEBC413CF7BAD093A225411BD565B40',X'01A22EC7C74B7F55BD55AEAA0819F408');
CREATE TABLE key_fences (
	key_id BLOB NOT NULL, 
	state TEXT NOT NULL, 
	PRIMARY KEY (key_id), 
	CONSTRAINT ck_key_fences_key_id CHECK (length(key_id) = 16)
)
 STRICT

;
INSERT INTO "key_fences" VALUES(X'01A22EC7C6E7736E84B4DAF694D168F1','open');
INSERT INTO "key_fences" VALUES(X'01A22EC7C72E7D31B71015ADC7DA321D','open');
INSERT INTO "key_fences" VALUES(X'01A22EC7C74B7F55BD55AEAA0819F408','closed');
INSERT INTO "key_fences" VALUES(X'01A22EC7C75C7A749CE91A2C2C968FB9','open');
CREATE TABLE marked_envelopes (
	key_id BLOB NOT NULL, 
	table_name TEXT NOT NULL, 
	tag BLOB NOT NULL, 
	PRIMARY KEY (key_id, table_name, tag), 
	CONSTRAINT ck_marked_envelopes_key_id CHECK (length(key_id) = 16)
)
 WITHOUT ROWID,
 STRICT

;
CREATE TABLE reencrypted_keys (
	job_id BLOB NOT NULL, 
	number INTEGER NOT NULL, 
	key_id BLOB NOT NULL, 
	moved INTEGER NOT NULL, 
	PRIMARY KEY (job_id, number, key_id), 
	CONSTRAINT ck_reencrypted_keys_job_id CHECK (length(job_id) = 16), 
	CONSTRAINT ck_reencrypted_keys_number CHECK (number >= 0), 
	CONSTRAINT ck_reencrypted_keys_key_id CHECK (length(key_id) = 16), 
	CONSTRAINT ck_reencrypted_keys_moved CHECK (moved >= 0)
)
 STRICT

;
INSERT INTO "reencrypted_keys" VALUES(X'01A22EC7C7AC72A98A618F1BF89B3A1A',0,X'01A22EC7C6E7736E84B4DAF694D168F1',2);
CREATE TABLE reencryption_failures (
	job_id BLOB NOT NULL, 
	number INTEGER NOT NULL, 
	failure INTEGER NOT NULL, 
	pass_number INTEGER NOT NULL, 
	said TEXT NOT NULL, 
	PRIMARY KEY (job_id, number, failure), 
	CONSTRAINT ck_reencryption_failures_job_id CHECK (length(job_id) = 16), 
	CONSTRAINT ck_reencryption_failures_number CHECK (number >= 0), 
	CONSTRAINT ck_reencryption_failures_failure CHECK (failure >= 0), 
	CONSTRAINT ck_reencryption_failures_pass_number CHECK (pass_number >= 0)
)
 STRICT

;
CREATE TABLE reencryption_jobs (
	job_id BLOB NOT NULL, 
	application TEXT NOT NULL, 
	layout INTEGER NOT NULL, 
	release TEXT NOT NULL, 
	state TEXT NOT NULL, 
	options TEXT NOT NULL, 
	items_per_second REAL, 
	paced_until REAL, 
	pass_number INTEGER NOT NULL, 
	total INTEGER NOT NULL, 
	stopped_runs TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	updated_at TEXT NOT NULL, 
	finished_at TEXT, 
	PRIMARY KEY (job_id), 
	CONSTRAINT ck_reencryption_jobs_job_id CHECK (length(job_id) = 16), 
	CONSTRAINT ck_reencryption_jobs_layout CHECK (layout >= 0), 
	CONSTRAINT ck_reencryption_jobs_items_per_second CHECK (items_per_second > 0), 
	CONSTRAINT ck_reencryption_jobs_paced_until CHECK (paced_until BETWEEN 0 AND 100000000000.0), 
	CONSTRAINT ck_reencryption_jobs_pass_number CHECK (pass_number >= 0), 
	CONSTRAINT ck_reencryption_jobs_total CHECK (total >= 0)
)
 STRICT

;
INSERT INTO "reencryption_jobs" VALUES(X'01A22EC7C7AC72A98A618F1BF89B3A1A','shop',1,'0.1.0','settling','{"keys": null, "tables": null, "heads": ["010304", "010300"]}',NULL,NULL,1,2,'[]','2026-11-30 23:26:14.473000','2026-11-30 23:26:14.755000',NULL);
CREATE TABLE reencryption_shards (
	job_id BLOB NOT NULL, 
	number INTEGER NOT NULL, 
	pass_number INTEGER NOT NULL, 
	phase INTEGER NOT NULL, 
	table_name TEXT NOT NULL, 
	selection TEXT NOT NULL, 
	upto TEXT, 
	cursor TEXT, 
	state TEXT NOT NULL, 
	worker TEXT, 
	seen_at TEXT, 
	version INTEGER NOT NULL, 
	counts TEXT NOT NULL, 
	PRIMARY KEY (job_id, number), 
	CONSTRAINT ck_reencryption_shards_job_id CHECK (length(job_id) = 16), 
	CONSTRAINT ck_reencryption_shards_number CHECK (number >= 0), 
	CONSTRAINT ck_reencryption_shards_pass_number CHECK (pass_number >= 0), 
	CONSTRAINT ck_reencryption_shards_phase CHECK (phase >= 0), 
	CONSTRAINT ck_reencryption_shards_version CHECK (version >= 0)
)
 STRICT

;
INSERT INTO "reencryption_shards" VALUES(X'01A22EC7C7AC72A98A618F1BF89B3A1A',0,1,1,'integer_sequenced_items','{"keys": ["01a22ec7-c6e7-736e-84b4-daf694d168f1"], "few": false, "fitting": ["01a22ec7-c72e-7d31-b710-15adc7da321d", "01a22ec7-c74b-7f55-bd55-aeaa0819f408"], "heads": ["010304", "010300"], "plain": false}','null','[["uuid", "926c5562-61a0-580f-9c56-0f4c678e1527"], ["int", "1"]]','done',NULL,'2026-11-30 23:26:14.696000',3,'{"done": 2, "changed": 0, "listed": 0}');
CREATE TABLE replaced_envelopes (
	key_id BLOB NOT NULL, 
	table_name TEXT NOT NULL, 
	sha256 BLOB NOT NULL, 
	sequence_id TEXT NOT NULL, 
	position TEXT NOT NULL, 
	replaced_at TEXT NOT NULL, 
	PRIMARY KEY (key_id, table_name, sha256, sequence_id, position), 
	CONSTRAINT ck_replaced_envelopes_key_id CHECK (length(key_id) = 16), 
	CONSTRAINT ck_replaced_envelopes_sha256 CHECK (length(sha256) = 32)
)
 STRICT

;
CREATE TABLE snapshots (
	sequence_id BLOB NOT NULL, 
	position BIGINT NOT NULL, 
	topic TEXT NOT NULL, 
	data BLOB NOT NULL, 
	key_id BLOB, 
	PRIMARY KEY (sequence_id, position)
);
CREATE TABLE stored_events (originator_id TEXT, originator_version INTEGER, topic TEXT, state BLOB,
PRIMARY KEY (originator_id, originator_version)) WITHOUT ROWID
;
CREATE TABLE timestamp_sequenced_items (
	sequence_id BLOB NOT NULL, 
	position BIGINT NOT NULL, 
	topic TEXT NOT NULL, 
	data BLOB NOT NULL, 
	key_id BLOB, 
	PRIMARY KEY (sequence_id, position)
);
CREATE INDEX ix_reencryption_jobs_state ON reencryption_jobs (application, state);
CREATE INDEX eventseal_key_id_e2bf0b0c_integer_sequenced_items ON integer_sequenced_items ((CASE WHEN typeof(data) = 'blob' AND length(data) >= 59 AND substr(data, 3, 1) < x'10' THEN CASE substr(data, 1, 2) WHEN x'0111' THEN substr(data, 4, 16) WHEN x'0103' THEN substr(data, 4, 16) WHEN x'0102' THEN substr(data, 4, 16) WHEN x'0101' THEN substr(data, 4, 16) END END));
CREATE INDEX eventseal_differ_ae6b8124_integer_sequenced_items ON integer_sequenced_items (key_id) WHERE (CASE WHEN typeof(data) = 'blob' AND length(data) >= 59 AND substr(data, 3, 1) < x'10' THEN CASE substr(data, 1, 2) WHEN x'0111' THEN substr(data, 4, 16) WHEN x'0103' THEN substr(data, 4, 16) WHEN x'0102' THEN substr(data, 4, 16) WHEN x'0101' THEN substr(data, 4, 16) END END) IS NOT key_id;
CREATE INDEX eventseal_key_id_e2bf0b0c_timestamp_sequenced_items ON timestamp_sequenced_items ((CASE WHEN typeof(data) = 'blob' AND length(data) >= 59 AND substr(data, 3, 1) < x'10' THEN CASE substr(data, 1, 2) WHEN x'0111' THEN substr(data, 4, 16) WHEN x'0103' THEN substr(data, 4, 16) WHEN x'0102' THEN substr(data, 4, 16) WHEN x'0101' THEN substr(data, 4, 16) END END));
CREATE INDEX eventseal_differ_ae6b8124_timestamp_sequenced_items ON timestamp_sequenced_items (key_id) WHERE (CASE WHEN typeof(data) = 'blob' AND length(data) >= 59 AND substr(data, 3, 1) < x'10' THEN CASE substr(data, 1, 2) WHEN x'0111' THEN substr(data, 4, 16) WHEN x'0103' THEN substr(data, 4, 16) WHEN x'0102' THEN substr(data, 4, 16) WHEN x'0101' THEN substr(data, 4, 16) END END) IS NOT key_id;
CREATE INDEX eventseal_key_id_e2bf0b0c_snapshots ON snapshots ((CASE WHEN typeof(data) = 'blob' AND length(data) >= 59 AND substr(data, 3, 1) < x'10' THEN CASE substr(data, 1, 2) WHEN x'0111' THEN substr(data, 4, 16) WHEN x'0103' THEN substr(data, 4, 16) WHEN x'0102' THEN substr(data, 4, 16) WHEN x'0101' THEN substr(data, 4, 16) END END));
CREATE INDEX eventseal_differ_ae6b8124_snapshots ON snapshots (key_id) WHERE (CASE WHEN typeof(data) = 'blob' AND length(data) >= 59 AND substr(data, 3, 1) < x'10' THEN CASE substr(data, 1, 2) WHEN x'0111' THEN substr(data, 4, 16) WHEN x'0103' THEN substr(data, 4, 16) WHEN x'0102' THEN substr(data, 4, 16) WHEN x'0101' THEN substr(data, 4, 16) END END) IS NOT key_id;
CREATE TRIGGER eventseal_fence_insert_stored_events BEFORE INSERT ON stored_events
BEGIN
  SELECT RAISE(ABORT, 'eventseal: the key is closed: seal the item again')
  FROM key_fences WHERE key_id = CASE WHEN typeof(NEW.state) = 'blob' AND length(NEW.state) >= 59 AND substr(NEW.state, 3, 1) < x'10' THEN CASE substr(NEW.state, 1, 2) WHEN x'0111' THEN substr(NEW.state, 4, 16) WHEN x'0103' THEN substr(NEW.state, 4, 16) WHEN x'0102' THEN substr(NEW.state, 4, 16) WHEN x'0101' THEN substr(NEW.state, 4, 16) END END AND state = 'closed';
END;
CREATE TRIGGER eventseal_fence_update_stored_events BEFORE UPDATE OF state ON stored_events
BEGIN
  SELECT RAISE(ABORT, 'eventseal: the key is closed: seal the item again')
  FROM key_fences WHERE key_id = CASE WHEN typeof(NEW.state) = 'blob' AND length(NEW.state) >= 59 AND substr(NEW.state, 3, 1) < x'10' THEN CASE substr(NEW.state, 1, 2) WHEN x'0111' THEN substr(NEW.state, 4, 16) WHEN x'0103' THEN substr(NEW.state, 4, 16) WHEN x'0102' THEN substr(NEW.state, 4, 16) WHEN x'0101' THEN substr(NEW.state, 4, 16) END END AND state = 'closed';
END;
CREATE INDEX eventseal_key_id_25686f5b_stored_events ON stored_events ((CASE WHEN typeof(state) = 'blob' AND length(state) >= 59 AND substr(state, 3, 1) < x'10' THEN CASE substr(state, 1, 2) WHEN x'0111' THEN substr(state, 4, 16) WHEN x'0103' THEN substr(state, 4, 16) WHEN x'0102' THEN substr(state, 4, 16) WHEN x'0101' THEN substr(state, 4, 16) END END));
COMMIT;
