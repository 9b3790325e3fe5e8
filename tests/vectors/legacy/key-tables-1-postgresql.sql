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
	CONSTRAINT uq_encryption_keys_active_scope UNIQUE (application, purpose, active_scope)
);
CREATE INDEX ix_encryption_keys_change ON encryption_keys (application, change);
CREATE INDEX ix_encryption_keys_scope ON encryption_keys (application, scope);
CREATE TABLE epochs (
	application VARCHAR COLLATE "C" NOT NULL, 
	begun_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	kek_versions JSON NOT NULL, 
	PRIMARY KEY (application)
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
	PRIMARY KEY (application)
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
CREATE INDEX ix_key_wrappings_kek ON key_wrappings (kek_uri, kek_version);
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
	PRIMARY KEY (key_id, table_name)
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
	PRIMARY KEY (job_id, number, key_id)
);
CREATE TABLE reencryption_failures (
	job_id UUID NOT NULL, 
	number BIGINT NOT NULL, 
	failure BIGINT NOT NULL, 
	pass_number BIGINT NOT NULL, 
	said JSON NOT NULL, 
	PRIMARY KEY (job_id, number, failure)
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
	PRIMARY KEY (job_id)
);
CREATE INDEX ix_reencryption_jobs_state ON reencryption_jobs (application, state);
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
	PRIMARY KEY (job_id, number)
);
CREATE TABLE replaced_envelopes (
	key_id UUID NOT NULL, 
	table_name VARCHAR COLLATE "C" NOT NULL, 
	sha256 BYTEA NOT NULL, 
	sequence_id VARCHAR COLLATE "C" NOT NULL, 
	position VARCHAR COLLATE "C" NOT NULL, 
	replaced_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (key_id, table_name, sha256, sequence_id, position)
);
