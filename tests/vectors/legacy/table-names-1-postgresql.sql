CREATE TABLE encryption_keys (
	key_id UUID NOT NULL, 
	application VARCHAR COLLATE "C" NOT NULL, 
	scope VARCHAR COLLATE "C" NOT NULL, 
	purpose VARCHAR COLLATE "C" NOT NULL, 
	state VARCHAR COLLATE "C" NOT NULL, 
	active_scope VARCHAR COLLATE "C", 
	binding BYTEA NOT NULL, 
	items_reserved BIGINT NOT NULL, 
	created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	deactivated_at TIMESTAMP WITH TIME ZONE, 
	compromised_at TIMESTAMP WITH TIME ZONE, 
	destroyed_at TIMESTAMP WITH TIME ZONE, 
	destroyed_by VARCHAR COLLATE "C", 
	row_version BIGINT NOT NULL, 
	change BIGINT NOT NULL, 
	seal BYTEA NOT NULL, 
	PRIMARY KEY (key_id), 
	CONSTRAINT uq_encryption_keys_active_scope UNIQUE (application, purpose, active_scope), 
	CONSTRAINT ck_encryption_keys_items_reserved CHECK (items_reserved >= 0), 
	CONSTRAINT ck_encryption_keys_row_version CHECK (row_version >= 0), 
	CONSTRAINT ck_encryption_keys_change CHECK (change >= 0)
);
CREATE TABLE epochs (
	application VARCHAR COLLATE "C" NOT NULL, 
	begun_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	kek_versions JSON NOT NULL, 
	number BIGINT, 
	shreds BIGINT, 
	branch_keys JSON, 
	finished_at TIMESTAMP WITH TIME ZONE, 
	seal BYTEA, 
	PRIMARY KEY (application), 
	CONSTRAINT ck_epochs_number CHECK (number >= 0), 
	CONSTRAINT ck_epochs_shreds CHECK (shreds >= 0)
);
CREATE TABLE erased_items (
	application VARCHAR COLLATE "C" NOT NULL, 
	digest BYTEA NOT NULL, 
	PRIMARY KEY (application, digest), 
	CONSTRAINT ck_erased_items_digest CHECK (length(digest) = 32)
);
CREATE TABLE kek_fences (
	kek_uri VARCHAR COLLATE "C" NOT NULL, 
	kek_version VARCHAR COLLATE "C" NOT NULL, 
	closed_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (kek_uri, kek_version)
);
CREATE TABLE key_changes (
	application VARCHAR COLLATE "C" NOT NULL, 
	counter BIGINT NOT NULL, 
	revoked BYTEA NOT NULL, 
	seal BYTEA NOT NULL, 
	refresh_interval FLOAT NOT NULL, 
	PRIMARY KEY (application), 
	CONSTRAINT ck_key_changes_counter CHECK (counter >= 0), 
	CONSTRAINT ck_key_changes_refresh_interval CHECK (refresh_interval BETWEEN 0 AND 100000000000.0)
);
CREATE TABLE revocation_nodes (
	application VARCHAR COLLATE "C" NOT NULL, 
	path BYTEA NOT NULL, 
	content BYTEA NOT NULL, 
	PRIMARY KEY (application, path)
);
CREATE TABLE sealed_tables (
	application VARCHAR COLLATE "C" NOT NULL, 
	database_name VARCHAR COLLATE "C" NOT NULL, 
	table_name VARCHAR COLLATE "C" NOT NULL, 
	collection VARCHAR COLLATE "C" NOT NULL, 
	columns JSON NOT NULL, 
	old_formats JSON, 
	PRIMARY KEY (application, database_name, table_name)
);
CREATE TABLE key_wrappings (
	key_id UUID NOT NULL, 
	kek_uri VARCHAR COLLATE "C" NOT NULL, 
	kek_version VARCHAR COLLATE "C" NOT NULL, 
	wrapped BYTEA NOT NULL, 
	created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	verified_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (key_id, kek_uri, kek_version), 
	FOREIGN KEY(key_id) REFERENCES encryption_keys (key_id)
);
CREATE TABLE key_fences (
	key_id UUID NOT NULL, 
	state VARCHAR COLLATE "C" NOT NULL, 
	PRIMARY KEY (key_id)
);
CREATE TABLE compromised_marks (
	key_id UUID NOT NULL, 
	table_name VARCHAR COLLATE "C" NOT NULL, 
	items_found BIGINT NOT NULL, 
	high_water BIGINT, 
	replaced_before BIGINT NOT NULL, 
	recorded_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (key_id, table_name), 
	CONSTRAINT ck_compromised_marks_items_found CHECK (items_found >= 0), 
	CONSTRAINT ck_compromised_marks_high_water CHECK (high_water >= 0), 
	CONSTRAINT ck_compromised_marks_replaced_before CHECK (replaced_before >= 0)
);
CREATE TABLE marked_envelopes (
	key_id UUID NOT NULL, 
	table_name VARCHAR COLLATE "C" NOT NULL, 
	tag BYTEA NOT NULL, 
	PRIMARY KEY (key_id, table_name, tag)
);
CREATE TABLE reencrypted_keys (
	job_id UUID NOT NULL, 
	number BIGINT NOT NULL, 
	key_id UUID NOT NULL, 
	moved BIGINT NOT NULL, 
	PRIMARY KEY (job_id, number, key_id), 
	CONSTRAINT ck_reencrypted_keys_number CHECK (number >= 0), 
	CONSTRAINT ck_reencrypted_keys_moved CHECK (moved >= 0)
);
CREATE TABLE reencryption_failures (
	job_id UUID NOT NULL, 
	number BIGINT NOT NULL, 
	failure BIGINT NOT NULL, 
	pass_number BIGINT NOT NULL, 
	said JSON NOT NULL, 
	PRIMARY KEY (job_id, number, failure), 
	CONSTRAINT ck_reencryption_failures_number CHECK (number >= 0), 
	CONSTRAINT ck_reencryption_failures_failure CHECK (failure >= 0), 
	CONSTRAINT ck_reencryption_failures_pass_number CHECK (pass_number >= 0)
);
CREATE TABLE reencryption_jobs (
	job_id UUID NOT NULL, 
	application VARCHAR COLLATE "C" NOT NULL, 
	layout BIGINT NOT NULL, 
	release VARCHAR COLLATE "C" NOT NULL, 
	state VARCHAR COLLATE "C" NOT NULL, 
	options JSON NOT NULL, 
	items_per_second FLOAT, 
	paced_until FLOAT, 
	pass_number BIGINT NOT NULL, 
	total BIGINT NOT NULL, 
	stopped_runs JSON NOT NULL, 
	created_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	updated_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	finished_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (job_id), 
	CONSTRAINT ck_reencryption_jobs_layout CHECK (layout >= 0), 
	CONSTRAINT ck_reencryption_jobs_items_per_second CHECK (items_per_second > 0), 
	CONSTRAINT ck_reencryption_jobs_paced_until CHECK (paced_until BETWEEN 0 AND 100000000000.0), 
	CONSTRAINT ck_reencryption_jobs_pass_number CHECK (pass_number >= 0), 
	CONSTRAINT ck_reencryption_jobs_total CHECK (total >= 0)
);
CREATE TABLE reencryption_shards (
	job_id UUID NOT NULL, 
	number BIGINT NOT NULL, 
	pass_number BIGINT NOT NULL, 
	phase BIGINT NOT NULL, 
	table_name VARCHAR COLLATE "C" NOT NULL, 
	selection JSON NOT NULL, 
	upto JSON, 
	cursor JSON, 
	state VARCHAR COLLATE "C" NOT NULL, 
	worker VARCHAR COLLATE "C", 
	seen_at TIMESTAMP WITH TIME ZONE, 
	version BIGINT NOT NULL, 
	counts JSON NOT NULL, 
	PRIMARY KEY (job_id, number), 
	CONSTRAINT ck_reencryption_shards_number CHECK (number >= 0), 
	CONSTRAINT ck_reencryption_shards_pass_number CHECK (pass_number >= 0), 
	CONSTRAINT ck_reencryption_shards_phase CHECK (phase >= 0), 
	CONSTRAINT ck_reencryption_shards_version CHECK (version >= 0)
);
CREATE TABLE replaced_envelopes (
	key_id UUID NOT NULL, 
	table_name VARCHAR COLLATE "C" NOT NULL, 
	sha256 BYTEA NOT NULL, 
	sequence_id VARCHAR COLLATE "C" NOT NULL, 
	position VARCHAR COLLATE "C" NOT NULL, 
	replaced_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (key_id, table_name, sha256, sequence_id, position), 
	CONSTRAINT ck_replaced_envelopes_sha256 CHECK (length(sha256) = 32)
);
CREATE TABLE erasure_ledger (
	application VARCHAR COLLATE "C" NOT NULL, 
	number BIGINT NOT NULL, 
	line BYTEA NOT NULL, 
	PRIMARY KEY (application, number), 
	CONSTRAINT ck_erasure_ledger_number CHECK (number >= 0)
);
CREATE TABLE integer_sequenced_items (
	sequence_id UUID NOT NULL, 
	position BIGINT NOT NULL, 
	topic VARCHAR COLLATE "C" NOT NULL, 
	data BYTEA NOT NULL, 
	key_id UUID, 
	PRIMARY KEY (sequence_id, position)
);
CREATE TABLE snapshots (
	sequence_id UUID NOT NULL, 
	position BIGINT NOT NULL, 
	topic VARCHAR COLLATE "C" NOT NULL, 
	data BYTEA NOT NULL, 
	key_id UUID, 
	PRIMARY KEY (sequence_id, position)
);
CREATE TABLE timestamp_sequenced_items (
	sequence_id UUID NOT NULL, 
	position NUMERIC(20, 6) NOT NULL, 
	topic VARCHAR COLLATE "C" NOT NULL, 
	data BYTEA NOT NULL, 
	key_id UUID, 
	PRIMARY KEY (sequence_id, position)
);
CREATE INDEX ix_encryption_keys_change ON encryption_keys (application, change);
CREATE INDEX ix_encryption_keys_scope ON encryption_keys (application, scope);
CREATE INDEX ix_key_wrappings_kek ON key_wrappings (kek_uri, kek_version);
CREATE INDEX ix_reencryption_jobs_state ON reencryption_jobs (application, state);
