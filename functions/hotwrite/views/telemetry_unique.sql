-- One row for each reading: Pub/Sub delivers at least once, and what was delivered twice is stored twice.
-- The first copy stays, so that a reading never changes after it was first seen.
SELECT *
FROM `${DATASET}.telemetry`
WHERE TRUE
QUALIFY ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY ingest_time) = 1
