-- A database of before devices had several models, as `sqlite3.Connection.iterdump` writes it.
BEGIN TRANSACTION;
CREATE TABLE bundle (
	digest VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	PRIMARY KEY (digest)
);
INSERT INTO "bundle" VALUES('ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','digits');
CREATE TABLE contribution (
	device VARCHAR NOT NULL, 
	lineage VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	learner VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	n_samples INTEGER NOT NULL, 
	base_release INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	received_ms INTEGER NOT NULL, 
	merged_version INTEGER NOT NULL, 
	merged_release INTEGER NOT NULL, 
	PRIMARY KEY (device, lineage, backbone)
);
CREATE TABLE device (
	id VARCHAR NOT NULL, 
	online BOOLEAN NOT NULL, 
	session INTEGER NOT NULL, 
	boot INTEGER NOT NULL, 
	agent_version VARCHAR NOT NULL, 
	profile VARCHAR NOT NULL, 
	hardware JSON NOT NULL, 
	bundle VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	head VARCHAR NOT NULL, 
	release INTEGER NOT NULL, 
	samples INTEGER NOT NULL, 
	state_seq INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	state_release INTEGER NOT NULL, 
	state_detail VARCHAR NOT NULL, 
	born BOOLEAN NOT NULL, 
	first_seen_ms INTEGER NOT NULL, 
	last_seen_ms INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "device" VALUES('cam-1',1,3,1,'1','p','{"cores": 4}','aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc',7,40,9,'active',7,'',1,5,7);
INSERT INTO "device" VALUES('cam-2',1,1,1,'','','{}','','','',0,0,0,'',0,'',0,5,5);
CREATE TABLE device_experts (
	device VARCHAR NOT NULL, 
	experts JSON NOT NULL, 
	received_ms INTEGER NOT NULL, 
	PRIMARY KEY (device)
);
INSERT INTO "device_experts" VALUES('cam-1','{"shipped": [1.0, 0.5, 3]}',7);
CREATE TABLE device_tag (
	device VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	value VARCHAR NOT NULL, 
	PRIMARY KEY (device, "key")
);
CREATE TABLE event (
	id INTEGER NOT NULL, 
	device VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	detail VARCHAR NOT NULL, 
	at_ms INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE forgotten (
	lineage VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	device VARCHAR NOT NULL, 
	pending BOOLEAN NOT NULL, 
	at_ms INTEGER NOT NULL, 
	PRIMARY KEY (lineage, backbone)
);
CREATE TABLE merge_memory (
	name VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	data BLOB NOT NULL, 
	PRIMARY KEY (name, backbone)
);
CREATE TABLE refused (
	device VARCHAR NOT NULL, 
	lineage VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	version INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	PRIMARY KEY (device, lineage, backbone)
);
CREATE TABLE release (
	counter INTEGER NOT NULL, 
	kind VARCHAR NOT NULL, 
	digest VARCHAR NOT NULL, 
	backbone VARCHAR NOT NULL, 
	devices JSON NOT NULL, 
	reason VARCHAR NOT NULL, 
	created_ms INTEGER NOT NULL, 
	PRIMARY KEY (counter)
);
INSERT INTO "release" VALUES(8,'head','dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd','bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb','["*"]','r',1);
CREATE TABLE telemetry (
	id INTEGER NOT NULL, 
	device VARCHAR NOT NULL, 
	boot INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	received_ms INTEGER NOT NULL, 
	"values" JSON NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (device, boot, seq)
);
INSERT INTO "telemetry" VALUES(1,'cam-1',1,1,7,'{"boot": 1, "seq": 1, "experts": {"shipped": [1.0, 0.5, 3]}}');
CREATE INDEX telemetry_received ON telemetry (received_ms);
COMMIT;
